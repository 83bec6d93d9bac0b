/* All features beside the page: search, filters, order, and a list that draws only the rows in view. */
"use strict";

nestcoder.list = (() => {
  const { make, number, percent, label, badge } = nestcoder.draw;
  const ROW = 58, MARGIN = 8, DENSE = 0.1;
  const state = { text: "", group: -1, kind: "alive", order: "number", found: [], current: -1 };
  const parts = {};

  const KINDS = {
    alive: ["alive", (firings) => firings > 0],
    all: ["all", () => true],
    dense: ["dense", (firings) => firings > DENSE * nestcoder.index.head.tokens],
    rare: ["rare", (firings) => firings > 0 && firings < 10],
    dead: ["silent", (firings) => firings === 0],
  };
  const ORDERS = {
    number: ["number", (a, b) => a - b],
    often: ["fires most often", (a, b) => nestcoder.index.firings[b] - nestcoder.index.firings[a] || a - b],
    seldom: ["fires least often", (a, b) => nestcoder.index.firings[a] - nestcoder.index.firings[b] || a - b],
    largest: ["largest activation", (a, b) => nestcoder.index.largest[b] - nestcoder.index.largest[a] || a - b],
    lost: ["explains most", (a, b) => nestcoder.index.lost[b] - nestcoder.index.lost[a] || a - b],
  };

  /* Whether a feature has the text in its label, its tokens or its number; lower-cased labels are kept for the next letter. */
  function matcher(text) {
    const { labels, vocabulary, tokens } = nestcoder.index;
    const wanted = text.toLowerCase();
    if (!wanted) return () => true;
    const id = wanted.match(/^(?:\d+\/|#)?(\d+)$/);
    const known = new Set(vocabulary.flatMap((word, place) => (word.toLowerCase().includes(wanted) ? [place] : [])));
    parts.lower = parts.lower || labels.map((text) => text.toLowerCase());
    return (feature) => (id && Number(id[1]) === feature) || parts.lower[feature].includes(wanted) || tokens[feature].some((place) => known.has(place));
  }

  function search() {
    const { labels, firings, head: { transcoder: { prefixes } } } = nestcoder.index;
    const matches = matcher(state.text);
    const [, isKind] = KINDS[state.kind];
    const [start, end] = state.group < 0 ? [0, labels.length] : [state.group ? prefixes[state.group - 1] : 0, prefixes[state.group]];
    const found = [];
    for (let feature = start; feature < end; feature++) {
      if (isKind(firings[feature]) && matches(feature)) found.push(feature);
    }
    state.found = found.sort(ORDERS[state.order][1]);
    parts.count.textContent = `${found.length.toLocaleString("en")} of ${labels.length.toLocaleString("en")} features`;
    parts.sizer.style.height = `${found.length * ROW}px`;
    parts.scroll.scrollTop = 0;
    paint();
  }

  function paint() {
    const first = Math.max(0, Math.floor(parts.scroll.scrollTop / ROW) - MARGIN);
    const last = Math.min(state.found.length, Math.ceil((parts.scroll.scrollTop + parts.scroll.clientHeight) / ROW) + MARGIN);
    parts.sizer.replaceChildren(...state.found.slice(first, last).map((feature, place) => row(feature, first + place)));
  }

  function row(feature, place) {
    const entry = nestcoder.entry(feature);
    return make("a", {
      className: entry.firings ? "row" : "row silent",
      href: `#/${entry.id}`,
      "aria-current": feature === state.current ? "page" : undefined,
      style: { top: `${place * ROW}px` },
    },
    make("span", { className: "line" }, badge(entry), make("b", {}, entry.id),
      make("small", {}, entry.firings ? `${percent(entry.density)} · max ${number(entry.largest)}` : "silent")),
    make("span", { className: "label" }, label(entry.label, true)));
  }

  function choice(name, entries, title) {
    const select = make("select", { "aria-label": title, onchange: () => { state[name] = name === "group" ? Number(select.value) : select.value; search(); } },
      entries.map(([value, text]) => make("option", { value }, text)));
    return select;
  }

  function build(side) {
    const { head } = nestcoder.index;
    const prefixes = head.transcoder.prefixes.map((end, group) => [group, `prefix ${end.toLocaleString("en")}`]);
    parts.input = make("input", { type: "search", placeholder: "Search tokens, labels, numbers   /", "aria-label": "Search", autocomplete: "off", spellcheck: false });
    let timer = 0;
    parts.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => { state.text = parts.input.value.trim(); search(); }, 60);
    });
    parts.count = make("small", { className: "count", "aria-live": "polite" });
    parts.sizer = make("div", { className: "sizer" });
    parts.scroll = make("div", { className: "scroll", tabIndex: -1, onscroll: () => requestAnimationFrame(paint) }, parts.sizer);
    side.replaceChildren(
      make("header", {},
        make("a", { className: "title", href: "#/" }, make("b", {}, head.cache.model.split("/").pop()), make("span", {}, ` layer ${head.cache.layer}`)),
        make("a", { className: "to-overview", href: "#/overview" }, "Overview, map and clusters"),
        parts.input,
        make("div", { className: "choices" },
          choice("kind", Object.entries(KINDS).map(([value, [text]]) => [value, text]), "Which features"),
          choice("group", [[-1, "all prefixes"], ...prefixes], "Prefix"),
          choice("order", Object.entries(ORDERS).map(([value, [text]]) => [value, text]), "Order")),
        parts.count),
      parts.scroll);
    new ResizeObserver(paint).observe(parts.scroll);
    search();
  }

  /* Mark the feature that is shown, and bring its row into view. */
  function show(feature) {
    state.current = feature;
    const place = state.found.indexOf(feature);
    if (place >= 0) {
      const top = place * ROW, { scrollTop, clientHeight } = parts.scroll;
      if (top < scrollTop || top + ROW > scrollTop + clientHeight) parts.scroll.scrollTop = Math.max(0, top - clientHeight / 3);
    }
    paint();
  }

  /* The feature some steps further in the list as it is ordered and filtered now. */
  function beside(steps) {
    const place = state.found.indexOf(state.current);
    const next = place < 0 ? 0 : Math.max(0, Math.min(state.found.length - 1, place + steps));
    return state.found[next];
  }

  const focus = () => { parts.input.focus(); parts.input.select(); };
  const clear = () => { parts.input.value = ""; state.text = ""; parts.input.blur(); search(); };
  return { build, show, beside, focus, clear };
})();
