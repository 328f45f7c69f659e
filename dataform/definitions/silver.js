// The published cut comes as a compilation variable, so that one compilation stands for one cut however often it is run.
const cut = huella.parseCut((dataform.projectConfig.vars || {}).huella_cut);

huella.tables.forEach(spec => {
  operate(spec.name, {
    project: huella.project,
    dataset: huella.silver,
    hasOutput: true,
    tags: ["silver"],
    description: spec.description,
    columns: words.silverColumns(spec),
  }).queries(ctx => {
    // One string, hence one job: variables, temporary tables and the transaction belong together.
    return [silver.script(huella, spec, huella.cutOf(cut, spec), ctx.self(), ctx.ref(huella.raw, spec.name))];
  });
});
