// What merged which cut, of every table. An action of its own, so that the merges need not make the table all at once.
operate(huella.STATE, {
  project: huella.project,
  dataset: huella.silver,
  hasOutput: true,
  tags: ["silver"],
  description: "Which cut was merged into each of silver's tables, and when: one row a merge, none is ever changed.",
  columns: words.stateColumns(),
}).queries(ctx => [target.createState({ state: ctx.self() })]);

const cut = huella.currentCut();

// Fails the run in which silver is not what it seems. Gold goes on: it is as right as it was, and what depends on a broken merge waits anyway.
if (cut || !huella.workspace()) {
  operate("strict_frescura", {
    project: huella.project,
    dataset: dataform.projectConfig.assertionSchema,
    hasOutput: false,
    tags: ["silver"],
    description: "Silver stands at a young cut, and the project knows every table and column of it.",
  }).queries(ctx => {
    const state = ctx.ref(huella.silver, huella.STATE);
    const at = cut ? `TIMESTAMP ${sql.literal(huella.cutTime(cut))}` : `(SELECT MAX(cut_time) FROM ${state})`;
    return [freshness.strict(freshness.problems(huella, cut, huella.workspace()), at, huella.maxAgeSeconds())];
  });
}
