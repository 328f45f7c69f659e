// Answers requests for scripts from the project's own generator, one JSON line each: what Dataform compiles, without compiling anew
// for each of a thousand windows. node generate.js INCLUDES_FOLDER
const path = require("path");
const readline = require("readline");

const includes = path.resolve(process.argv[2]);
const load = name => require(path.join(includes, name));
const rules = require("./rules.js");

// "cleaning" is the project's own file; otherwise a set of rules.js, for whatever table is asked for, with or without soft delete.
function chosen({ name, soft }, source) {
  if (name === "cleaning") return load("cleaning.js");
  return { [source]: { ...rules[name], soft_delete: soft } };
}

// What fails the run, if anything does.
function freshness(model, cut) {
  const found = load("freshness.js").problems(model, cut, false);
  const at = cut ? `TIMESTAMP '${load("huella.js").cutTime(cut)}'` : "(SELECT CAST(NULL AS TIMESTAMP))";
  return load("freshness.js").strict(found, at, model.maxAge || 172800);
}

readline.createInterface({ input: process.stdin }).on("line", line => {
  let answer;
  try {
    const { generated, ruleset, source, cut: given } = JSON.parse(line);
    const huella = load("huella.js");
    const cut = typeof given === "string" ? huella.parseCut(given) : given;
    const model = huella.describe({ generated, rules: chosen(ruleset, source) });
    const spec = model.tables.find(table => table.source === source);
    const raw = `\`${model.project}.${model.raw}.${spec.name}\``;
    const target = `\`${model.project}.${model.silver}.${spec.name}\``;
    answer = {
      raw: load("raw.js").externalTable(spec, raw),
      script: load("silver.js").script(model, spec, huella.cutOf(cut, spec), target, raw),
      target,
      frescura: freshness(model, cut),
    };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
