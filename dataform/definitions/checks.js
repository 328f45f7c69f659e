// Failed strict checks stop gold, which depends on them. Warnings have a tag of their own: a failed action fails its
// whole run, so only a run that asks for the tag "warn" is failed by them. gold.hallazgos counts them in every run.
checks.list(huella).forEach(check => {
  assert(check.name, {
    project: huella.project,
    tags: check.strict ? ["silver"] : ["warn"],
    description: check.description,
  }).query(ctx => check.query(spec => ctx.ref(huella.silver, spec.name)));
});
