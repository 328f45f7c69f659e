// The published cut comes as a compilation variable, so that one compilation stands for one cut however often it is run.
const cut = huella.currentCut();
huella.checkLocation(dataform.projectConfig.defaultLocation);

huella.tables.forEach(spec => {
  operate(spec.name, {
    project: huella.project,
    dataset: huella.silver,
    hasOutput: true,
    tags: ["silver"],
    description: spec.description,
    columns: words.silverColumns(spec),
  }).queries(ctx => {
    ctx.ref(huella.silver, huella.STATE);
    // One string, hence one job: variables, temporary tables and the transaction belong together.
    return [silver.script(huella, spec, huella.cutOf(cut, spec), ctx.self(), ctx.ref(huella.raw, spec.name))];
  });
});
