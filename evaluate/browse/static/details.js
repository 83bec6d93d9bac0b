/* Everything that is known of one run. */
"use strict";

nestcoder.details = (() => {
  const { make, number, percent } = nestcoder.draw;
  const at = (list, place, words) => (list && list[place] !== null && list[place] !== undefined ? words(list[place]) : "–");

  /* A line a prefix; a column that has no number of any of them is left out. */
  function prefixes(run) {
    if (!run.prefixes || !(run.fvu || run.delta)) return null;
    const digits = (count) => (value) => number(value, count);
    const isEach = run.dead && run.dead.length === run.prefixes.length;
    const columns = [["FVU", run.fvu, digits(4)], ["whitened", run.whitened, digits(4)], ["L0", run.l0, digits(3)], ["dead", isEach ? run.dead : null, percent],
      ["Δ loss", run.delta, digits(3)], ["KL", run.kl, digits(3)], ["top-1", run.top1, percent]].filter(([, values]) => values);
    const rows = run.prefixes.map((prefix, place) => make("tr", {}, make("td", {}, prefix.toLocaleString("en")),
      columns.map(([, values, words]) => make("td", {}, at(values, place, words)))));
    return table(["prefix", ...columns.map(([title]) => title)], rows);
  }

  const table = (titles, rows) => make("table", {},
    make("thead", {}, make("tr", {}, titles.map((title) => make("th", {}, title)))), make("tbody", {}, rows));

  /* A line a layer: FVU of every prefix; what fires there, what crosses to later layers, and the pages of its features. */
  function layers(run) {
    if (!run.per_layer) return null;
    const isMeasured = run.per_layer.some((one) => one.fvu), prefixes = isMeasured ? run.prefixes : [];
    if (!isMeasured && !run.per_layer.some((one) => one.features)) return null;
    const crosses = run.per_layer.some((one) => one.crossing), absorbs = run.per_layer.some((one) => typeof one.absorption === "number");
    const rows = run.per_layer.map((one) => make("tr", {},
      make("td", {}, one.features ? make("a", { href: one.features, title: "Feature pages" }, `layer ${one.layer}`) : `layer ${one.layer}`),
      prefixes.map((_, place) => make("td", {}, at(one.fvu, place, (value) => number(value, 4)))),
      make("td", {}, at(one.l0, prefixes.length - 1, (value) => number(value, 3))),
      make("td", {}, at([one.dead], 0, percent)),
      crosses ? make("td", {}, at([one.crossing], 0, percent)) : null,
      absorbs ? make("td", {}, at([one.absorption], 0, (value) => number(value, 3))) : null));
    const titles = ["", ...prefixes.map((prefix) => `FVU of ${prefix.toLocaleString("en")}`), "L0", "dead", crosses && "crosses", absorbs && "absorption"];
    return table(titles.filter((title) => typeof title === "string"), rows);
  }

  function links(run) {
    const found = run.report.map((path) => make("a", { href: path }, path.split("/").pop()));
    if (run.features) found.unshift(make("a", { href: run.features }, "Feature pages"));
    return found.length ? make("nav", { className: "links", "aria-label": `Files of ${run.id}` }, found) : null;
  }

  function earlier(run) {
    if (!run.earlier.length) return null;
    return make("p", { className: "note" }, "Earlier reports: ", run.earlier.map((one) => make("span", {}, `${one.folder.split("/").pop()}${one.fvu ? ` (FVU ${number(one.fvu, 4)})` : ""} `)));
  }

  function view(run) {
    const facts = [
      nestcoder.table.kind(run),
      run.layers.length > 1 && `layers ${nestcoder.table.layers(run)}, of which numbers are means`,
      run.kind === "cross-layer" && run.window !== undefined && `writes to its own layer and ${run.window} later ones`,
      run.crossing && `${percent(run.crossing)} of the decoder crosses layers`,
      run.activation && `${run.activation}${run.top_k ? `, k ${run.top_k}` : ""}`,
      run.steps && `${run.steps.toLocaleString("en")} steps`,
      run.tokens && `${run.tokens.toLocaleString("en")} tokens`,
      run.measured === "log" && "figures of the training's own log: a sample of held-out rows",
      run.measured === "layers" && run.fvu && "FVU, L0 and dead of the layers' own reports",
      run.measured === "report" && run.tokens_used && `measured on ${run.tokens_used.toLocaleString("en")} held-out tokens`,
      run.measured === "report" && run.absorption === null && run.no_absorption && `no absorption: ${run.no_absorption}`,
    ].filter(Boolean);
    return make("section", { className: "panel" },
      make("div", { className: "name" }, make("h2", {}, run.id), nestcoder.table.state(run)),
      run.problem ? make("p", { className: "note" }, run.problem) : null,
      make("p", { className: "note" }, facts.join("; ")), links(run), prefixes(run), layers(run), earlier(run),
      run.summary ? make("details", {}, make("summary", {}, "Summary of the report"), make("pre", {}, run.summary)) : null);
  }

  return { view };
})();
