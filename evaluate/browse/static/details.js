/* Everything that is known of one run. */
"use strict";

nestcoder.details = (() => {
  const { make, number, percent } = nestcoder.draw;
  const at = (list, place, words) => (list && list[place] !== null && list[place] !== undefined ? words(list[place]) : "–");

  function prefixes(run) {
    if (!run.prefixes || !run.fvu) return null;
    const rows = run.prefixes.map((prefix, place) => make("tr", {},
      make("td", {}, prefix.toLocaleString("en")),
      make("td", {}, at(run.fvu, place, (value) => number(value, 4))),
      make("td", {}, at(run.whitened, place, (value) => number(value, 4))),
      make("td", {}, at(run.l0, place, (value) => number(value, 3))),
      make("td", {}, at(run.dead && run.dead.length === run.prefixes.length ? run.dead : null, place, percent)),
      make("td", {}, at(run.delta, place, (value) => number(value, 3)))));
    return make("table", {},
      make("thead", {}, make("tr", {}, ["prefix", "FVU", "whitened", "L0", "dead", "Δ loss"].map((title) => make("th", {}, title)))), make("tbody", {}, rows));
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
      run.activation && `${run.activation}${run.top_k ? `, k ${run.top_k}` : ""}`,
      run.steps && `${run.steps.toLocaleString("en")} steps`,
      run.tokens && `${run.tokens.toLocaleString("en")} tokens`,
      run.measured === "log" && "figures of the training's own log: a sample of held-out rows",
      run.measured === "report" && run.tokens_used && `measured on ${run.tokens_used.toLocaleString("en")} held-out tokens`,
      run.measured === "report" && run.absorption === null && run.no_absorption && `no absorption: ${run.no_absorption}`,
    ].filter(Boolean);
    return make("section", { className: "panel" },
      make("div", { className: "name" }, make("h2", {}, run.id), nestcoder.table.state(run)),
      run.problem ? make("p", { className: "note" }, run.problem) : null,
      make("p", { className: "note" }, facts.join("; ")), links(run), prefixes(run), earlier(run),
      run.summary ? make("details", {}, make("summary", {}, "Summary of the report"), make("pre", {}, run.summary)) : null);
  }

  return { view };
})();
