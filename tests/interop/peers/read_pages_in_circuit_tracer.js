/* circuit-tracer's viewer reads every page of our packs: util.js and init-feature-examples.js as they are, with the
   browser around them (fetch, pako, d3) stood in for.  node read_pages_in_circuit_tracer.js ASSETS PACKS */
"use strict";

const fs = require("fs"), vm = require("vm"), zlib = require("zlib");
const [assets, packs] = process.argv.slice(2);

/* Whatever the scripts draw goes nowhere. */
const nothing = () => new Proxy(function () {}, { get: (_, key) => (key === Symbol.toPrimitive ? () => "" : nothing()), apply: () => nothing() });

global.window = { location: { href: "http://viewer/", hostname: "viewer" } };
global.pako = { inflate: (bytes) => zlib.gunzipSync(Buffer.from(bytes)).toString() };
global.d3 = { scaleSequential: () => ({ domain: () => ({ clamp: () => 0 }) }), interpolateOranges: 0, select: () => nothing() };
global.fetch = async (url, options = {}) => {
  const whole = fs.readFileSync(`${packs}/${url.split("/features/")[1]}`);
  const range = options.headers?.Range?.match(/bytes=(\d+)-(\d+)/);
  const bytes = range ? whole.subarray(Number(range[1]), Number(range[2]) + 1) : whole;
  return { ok: true, status: range ? 206 : 200, arrayBuffer: async () => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) };
};
vm.runInThisContext(fs.readFileSync(`${assets}/util.js`, "utf8"));
global.util = window.util;
window.util.initRenderAll = () => ({ feature() {} });
vm.runInThisContext(fs.readFileSync(`${assets}/feature_examples/init-feature-examples.js`, "utf8"));

(async () => {
  const { loadFeature } = window.initFeatureExamples({ containerSel: nothing(), showLogits: false, showExamples: false });
  const index = JSON.parse(zlib.gunzipSync(fs.readFileSync(`${packs}/index.json.gz`)));
  const pages = {};
  for (const [name, { offsets }] of Object.entries(index)) {
    const layer = Number(name);
    pages[name] = [];
    for (let feature = 0; feature + 1 < offsets.length; feature++) {
      if (offsets[feature] === offsets[feature + 1]) continue;
      const sum = layer + feature;
      pages[name].push(await loadFeature("owner/repository", (sum * (sum + 1)) / 2 + feature, layer));
    }
  }
  process.stdout.write(JSON.stringify(pages));
})();
