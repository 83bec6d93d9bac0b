/* The page: filter, plots, table, the chosen runs. Which are chosen stands behind "#", so a choice can be sent. */
"use strict";

nestcoder.runs = (() => {
  const { make } = nestcoder.draw;
  const main = document.getElementById("main");
  const MOST_CURVES = 8, EVERY_MS = 4000;
  const state = { data: JSON.parse(document.getElementById("data").textContent), text: "", order: { column: 0, down: false }, chosen: new Set(), pointed: "", metric: "held_out_fvu" };
  const parts = {};

  /* What runs of one colour share, as words of the legend: the layers, or where there are more of those than colours, the kind. */
  const COLOURS = 8;
  const SHARED = [
    (run) => `${run.model} ${run.layers.length > 1 ? "layers" : "layer"} ${nestcoder.table.layers(run)}`,
    (run) => `${run.model}, ${nestcoder.table.kind(run)}`,
    nestcoder.table.kind,
  ];

  function groups() {
    if (state.groups) return state.groups;
    for (const share of SHARED) {
      state.groups = { share, names: [...new Set(state.data.dictionaries.map(share))] };
      if (state.groups.names.length <= COLOURS) break;
    }
    return state.groups;
  }

  const colour = (run) => `var(--group-${groups().names.indexOf(groups().share(run)) % COLOURS})`;

  function shown() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = state.data.dictionaries.filter((run) => words.every((word) => `${run.id} ${nestcoder.table.kind(run)} ${run.state} ${run.activation || ""} k${run.top_k || ""}`.toLowerCase().includes(word)));
    return nestcoder.table.sorted(found, state.order);
  }

  /* (L0, FVU, prefix) of every prefix that has both, for the plot. */
  const pairs = (run) => (run.prefixes || []).map((prefix, place) => [run.l0 && run.l0[place], run.fvu && run.fvu[place], prefix]).filter(([l0, fvu]) => l0 > 0 && fvu > 0);

  function panel(title, note, drawing, legend) {
    return make("section", { className: "panel" }, make("h2", {}, title, note),
      drawing || make("p", { className: "none" }, "No run here has it."), legend ? make("div", { className: "legend" }, legend) : null);
  }

  const mark = (text, group) => make("span", {}, make("i", { className: "badge", style: { "--group": group } }), text);

  function plots(runs) {
    const drawn = runs.map((run) => ({ ...run, pairs: pairs(run) })).filter((run) => run.pairs.length);
    const { share } = groups();
    const firsts = drawn.filter((run, place) => drawn.findIndex((other) => share(other) === share(run)) === place);
    const chosen = runs.filter((run) => state.chosen.has(run.id));
    const curves = (chosen.length ? chosen : runs).filter((run) => run.log[state.metric]).slice(0, MOST_CURVES);
    // Runs of one layer stand beside each other here, so each has a colour of its own.
    const own = (run) => `var(--group-${curves.indexOf(run)})`;
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.log)))];
    const choice = make("select", { "aria-label": "Metric", onchange: () => { state.metric = choice.value; draw(); } },
      names.map((name) => make("option", { value: name, selected: name === state.metric }, name.replaceAll("_", " "))));
    return make("div", { className: "pair" },
      panel("FVU against L0", make("small", {}, "small dots: prefixes"), nestcoder.plots.tradeOff(drawn, colour, state.chosen, choose), firsts.map((run) => mark(share(run), colour(run)))),
      panel("Over training", names.length ? choice : null, nestcoder.plots.training(curves, state.metric, own), curves.map((run) => mark(run.id, own(run)))));
  }

  function caches() {
    const bare = state.data.caches.filter((cache) => !state.data.dictionaries.some((run) => run.model === cache.model && run.layers.includes(cache.layer)));
    if (!bare.length) return null;
    return make("p", { className: "note" }, "Harvested, nothing trained yet: ", bare.map((cache) => `${cache.model} layer ${cache.layer} (${(cache.train_rows || 0).toLocaleString("en")} rows)`).join(", "), ".");
  }

  function draw() {
    const runs = shown();
    parts.count.textContent = `${runs.length.toLocaleString("en")} of ${state.data.dictionaries.length.toLocaleString("en")} dictionaries`;
    parts.date.textContent = `as of ${state.data.made_at.slice(0, 19).replace("T", " ")} UTC`;
    const chosen = runs.filter((run) => state.chosen.has(run.id));
    parts.body.replaceChildren(...[plots(runs), nestcoder.table.view(runs, { ...state, reorder, choose }), caches(),
      make("div", { className: "details" }, chosen.length ? chosen.map(nestcoder.details.view) : make("p", { className: "none" }, "Choose runs in the table (j, k, Enter) to see their prefixes, reports and curves."))].filter(Boolean));
  }

  function reorder(column) {
    state.order = { column, down: state.order.column === column && !state.order.down };
    draw();
  }

  function choose(id) {
    const next = new Set(state.chosen);
    if (!next.delete(id)) next.add(id);
    location.hash = [...next].map(encodeURIComponent).join("+");
  }

  function fromAddress() {
    const ids = location.hash.slice(1).split("+").map((text) => { try { return decodeURIComponent(text); } catch { return ""; } });
    state.chosen = new Set(state.data.dictionaries.map((run) => run.id).filter((id) => ids.includes(id)));
    draw();
  }

  function move(steps) {
    const ids = shown().map((run) => run.id);
    const place = ids.indexOf(state.pointed);
    state.pointed = ids[Math.max(0, Math.min(ids.length - 1, place + steps))] || "";
    draw();
    document.querySelector("tr.pointed")?.scrollIntoView({ block: "nearest" });
  }

  function turnTheme() {
    const { dataset } = document.documentElement;
    const dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    dataset.theme = dark ? "light" : "dark";
  }

  const KEYS = { "/": () => parts.input.focus(), j: () => move(1), k: () => move(-1), Enter: () => state.pointed && choose(state.pointed), t: turnTheme, Escape: () => { location.hash = ""; } };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input") && event.key === "Escape") event.target.blur();
    if (event.target.matches("input, select, button, a, summary") || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  }

  /* A served page asks for the runs again and again; one from disk is what it was when it was written. */
  async function renew() {
    try {
      const answer = await fetch("runs.json");
      if (!answer.ok) throw new Error(answer.statusText);
      state.data = await answer.json();
      state.groups = null;
      if (!document.activeElement?.matches("select")) fromAddress();
    } catch {
      parts.date.textContent = "the server has stopped; this is what it said last";
    }
    setTimeout(renew, EVERY_MS);
  }

  parts.count = make("small", { className: "count", "aria-live": "polite" });
  parts.date = make("small", { className: "date" });
  parts.body = make("div", {});
  parts.input = make("input", { type: "search", placeholder: "Filter: model, layer, name, kind, k16   /", "aria-label": "Filter", autocomplete: "off", spellcheck: false,
    oninput: () => { state.text = parts.input.value; draw(); } });
  main.replaceChildren(
    make("header", { className: "top" }, make("h1", {}, state.data.folder), parts.input, parts.count, parts.date,
      make("button", { type: "button", className: "theme", onclick: turnTheme, title: "Dark or light (t)" }, "◐")),
    parts.body);
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", fromAddress);
  fromAddress();
  if (location.protocol.startsWith("http")) setTimeout(renew, EVERY_MS);
  return { state };
})();
