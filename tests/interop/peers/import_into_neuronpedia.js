/* Neuronpedia's importJsonlString on every file of an export, into the database that the environment names; then every
   field of every line is compared with its row.  node import_into_neuronpedia.js SOURCES EXPORT
   Its modules for the bucket and for Prisma's client are stood in for: nothing of them is called. */
"use strict";

const fs = require("fs"), path = require("path"), zlib = require("zlib");
const { Pool } = require("pg"), typescript = require("typescript"), zod = require("zod");
const [sources, exported] = process.argv.slice(2);

const STANDINS = { "@/lib/db": { prisma: {} }, "@/lib/utils/s3": { CONFIG_BASE_PATH: "" }, "@prisma/client": { Prisma: {} }, zod };

function load(name) {
  const text = fs.readFileSync(path.join(sources, name), "utf8");
  const options = { module: typescript.ModuleKind.CommonJS, target: typescript.ScriptTarget.ES2022, esModuleInterop: true };
  const module_ = { exports: {} };
  new Function("require", "exports", "module", typescript.transpileModule(text, { compilerOptions: options }).outputText)(
    (wanted) => STANDINS[wanted] || require(wanted), module_.exports, module_);
  return module_.exports;
}

const { importJsonlString } = load("import.ts");
const schemas = load("schemas.ts");
const TABLES = { release: ["SourceRelease", ["name"]], model: ["Model", ["id"]], sourceset: ["SourceSet", ["modelId", "name"]], source: ["Source", ["modelId", "id"]] };
const BATCHES = { features: ["Neuron", ["modelId", "layer", "index"]], activations: ["Activation", ["id"]] };
const pool = new Pool({ connectionString: process.env.POSTGRES_URL_NON_POOLING });
const found = { lines: {}, fields: 0, different: [], unknown: [], refused: [] };

const same = (stated, stored) => (stored instanceof Date ? new Date(stated).getTime() === stored.getTime() : JSON.stringify(stated) === JSON.stringify(stored));

/* What the admin page gives to Prisma, whose client is not here: the columns that a record names, the others by default. */
async function inserted(text, table) {
  for (const line of text.trim().split("\n")) {
    const columns = Object.keys(JSON.parse(line)).map((name) => `"${name}"`).join(", ");
    await pool.query(`INSERT INTO "${table}" (${columns}) SELECT ${columns} FROM jsonb_populate_record(null::"${table}", $1::jsonb)`, [line]);
  }
}

/* Every field of every line against its row. */
async function compared(text, table, keys) {
  const { rows: columns } = await pool.query("SELECT column_name FROM information_schema.columns WHERE table_name = $1", [table]);
  const known = new Set(columns.map((column) => column.column_name));
  const { rows } = await pool.query(`SELECT * FROM "${table}"`);
  const byKey = new Map(rows.map((row) => [JSON.stringify(keys.map((key) => row[key])), row]));
  for (const line of text.trim().split("\n").map((one) => JSON.parse(one))) {
    found.lines[table] = (found.lines[table] || 0) + 1;
    const row = byKey.get(JSON.stringify(keys.map((key) => line[key])));
    if (!row) { found.different.push([table, "a row is missing", keys.map((key) => line[key])]); continue; }
    for (const [field, stated] of Object.entries(line)) {
      found.fields += 1;
      if (!known.has(field)) found.unknown.push([table, field]);
      else if (!same(stated, row[field])) found.different.push([table, field, stated, row[field]]);
    }
  }
}

(async () => {
  const [model] = fs.readdirSync(exported);
  for (const source of fs.readdirSync(path.join(exported, model))) {
    const folder = path.join(exported, model, source);
    for (const [name, [table, keys]] of Object.entries(TABLES)) {
      const text = fs.readFileSync(path.join(folder, `${name}.jsonl`), "utf8");
      const read = schemas[`${table}Schema`].partial().strict().safeParse(JSON.parse(text));
      if (!read.success) found.refused.push([table, read.error.issues]);
      await inserted(text, table);
      await compared(text, table, keys);
    }
    for (const [name, [table, keys]] of Object.entries(BATCHES)) {
      const batches = fs.readdirSync(path.join(folder, name)).sort();
      const texts = batches.map((batch) => zlib.gunzipSync(fs.readFileSync(path.join(folder, name, batch))).toString().trim());
      for (const text of texts) await importJsonlString(table, text);
      await compared(texts.join("\n"), table, keys);
    }
  }
  await pool.end();
  console.log(JSON.stringify({ ...found, different: found.different.slice(0, 20), differences: found.different.length, unknown: [...new Set(found.unknown.map(String))] }));
})();
