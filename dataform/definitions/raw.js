huella.tables.forEach(spec => {
  operate(spec.name, {
    project: huella.project,
    dataset: huella.raw,
    hasOutput: true,
    tags: ["raw", "silver"],
  }).queries(ctx => [raw.externalTable(spec, ctx.self())]);
});
