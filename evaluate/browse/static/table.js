/* The table of runs: its columns, its order, its rows. */
"use strict";

nestcoder.table = (() => {
  const { make, number, percent } = nestcoder.draw;
  const last = (list) => (list && list.length ? list[list.length - 1] : null);
  const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  const figure = (value, digits) => (value === null || value === undefined ? "–" : number(value, digits));
  const share = (value) => (value === null || value === undefined ? "–" : percent(value));

  const KINDS = { transcoder: "transcoder", sae: "autoencoder", "cross-layer": "cross-layer", set: "per-layer set", "sae set": "set of autoencoders" };
  const kind = (run) => KINDS[run.kind] || run.kind;

  /* 8, or 0–11, or 4, 8, 12 where there are gaps. */
  function layers(run) {
    const first = run.layers[0], end = last(run.layers);
    return run.layers.length > 2 && end - first === run.layers.length - 1 ? `${first}–${end}` : run.layers.join(", ");
  }

  function state(run) {
    const text = run.problem ? "damaged" : run.state;
    return make("span", { className: `state${run.problem ? " problem" : run.state === "in training" ? " training" : ""}`, title: run.problem }, text);
  }

  function pages(run) {
    return run.features ? make("a", { href: run.features, title: "Feature pages", onclick: (event) => event.stopPropagation() }, "features") : "";
  }

  /* Heading, what orders the column, what is shown, and what the heading means. */
  const COLUMNS = [
    ["model", (run) => run.model, (run) => run.model, "", "words"],
    ["layer", (run) => run.layer, layers, "that the features read; numbers of several layers are means over them"],
    ["name", (run) => run.name, (run) => make("b", {}, run.name), "", "words"],
    ["kind", kind, kind, "what it is: of one layer, or of several at once", "words"],
    ["", (run) => run.state, state, "", "words"],
    ["features", (run) => run.dict_size, (run) => whole(run.dict_size), "features in the dictionary, or in each layer of one"],
    ["k", (run) => run.top_k, (run) => whole(run.top_k), "features active on a row, where the rule has a limit"],
    ["FVU", (run) => last(run.fvu), (run) => figure(last(run.fvu), 4), "fraction of variance unexplained by the whole dictionary: of the report, or of the last checkpoint's sample of held-out rows"],
    ["L0", (run) => last(run.l0), (run) => figure(last(run.l0), 3), "features that fire on a token"],
    ["dead", (run) => last(run.dead), (run) => share(last(run.dead)), "share of features that never fire"],
    ["absorption", (run) => run.absorption, (run) => figure(run.absorption, 3), "first-letter absorption"],
    ["Δ loss", (run) => last(run.delta), (run) => figure(last(run.delta), 3), "nats a token that the language model loses with the dictionary, of several layers all at once, spliced in"],
    ["tokens", (run) => run.tokens, (run) => whole(run.tokens), "tokens trained on"],
    ["date", (run) => run.date || "", (run) => make("span", { className: "soft" }, run.date ? run.date.slice(0, 16).replace("T", " ") : "–"), "of the report, or of the end of training; UTC", "words"],
    ["", (run) => run.features || "", pages, "", "words"],
  ];

  /* Runs without a value come last, whichever way the order runs. */
  function sorted(runs, { column, down }) {
    const key = COLUMNS[column][1];
    const isMissing = (value) => value === null || value === undefined || value === "";
    return [...runs].sort((one, other) => {
      const a = key(one), b = key(other);
      if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
      const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
      return (down ? -order : order) || one.id.localeCompare(other.id);
    });
  }

  function heading(order, reorder) {
    return make("tr", {}, COLUMNS.map(([title, , , meaning, kind], column) => make("th", {
      className: kind || "", scope: "col", title: meaning,
      "aria-sort": order.column !== column ? "none" : order.down ? "descending" : "ascending",
    }, title ? make("button", { type: "button", onclick: () => reorder(column) }, title) : "")));
  }

  function row(run, chosen, pointed, choose) {
    return make("tr", { "aria-selected": String(chosen.has(run.id)), className: run.id === pointed ? "pointed" : "", "data-run": run.id, onclick: () => choose(run.id) },
      COLUMNS.map(([title, , shown, , kind]) => make("td", { className: kind || "", "data-title": title }, shown(run))));
  }

  function view(runs, { order, chosen, pointed, reorder, choose }) {
    return make("div", { className: "wide" }, make("table", { className: "table" },
      make("thead", {}, heading(order, reorder)),
      make("tbody", {}, runs.map((run) => row(run, chosen, pointed, choose)))));
  }

  return { view, sorted, state, last, kind, layers };
})();
