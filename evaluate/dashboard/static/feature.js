/* The page of one feature, and several side by side. */
"use strict";

nestcoder.feature = (() => {
  const { make, number, percent, token, label, context, link, badge } = nestcoder.draw;
  const NAMES = { strongest: "Strongest", uniform: "Random firings", silent: "Silent" };
  const NOTES = {
    strongest: "The strongest firing in each document, strongest first.",
    uniform: "Drawn from all firings alike: what the feature mostly is.",
    silent: "From the same documents, with no firing in the text shown.",
  };
  let kind = "strongest";

  const section = (title, note, ...children) =>
    make("section", {}, make("h2", {}, title, note ? make("small", {}, note) : null), ...children);

  const fact = (name, value, title) => make("div", { className: "fact", title }, make("dt", {}, name), make("dd", {}, value));

  function facts(entry, page) {
    const median = page.percentiles[nestcoder.index.head.percentiles.indexOf(50)];
    return make("dl", { className: "facts" },
      fact("fires on", percent(entry.density), `${entry.firings.toLocaleString("en")} of ${nestcoder.index.head.tokens.toLocaleString("en")} tokens`),
      fact("firings", entry.firings.toLocaleString("en")),
      fact("largest", number(entry.largest)),
      fact("median", number(median), "of the values with which it fires"),
      fact("FVU without it", `+ ${number(entry.lost, 2)}`, "what the fraction of variance unexplained grows by when this feature alone is left out of the whole dictionary"),
      fact("in its prefix", `+ ${number(page.lost_prefix, 2)}`, "the same for the shortest prefix that has it"),
      entry.cluster < 0 ? null : fact("cluster", make("a", { href: nestcoder.clusters.address(entry.cluster) }, String(entry.cluster)), "features that fire on the same rows or write alike"));
  }

  function head(entry, compared) {
    const { feature } = entry;
    const add = make("button", { type: "button", onclick: () => nestcoder.app.toggleCompared(feature), title: "Put beside others (c)", "aria-pressed": String(compared.includes(feature)) },
      compared.includes(feature) ? "In comparison" : "Compare");
    const copy = make("button", { type: "button", onclick: () => nestcoder.app.copyLink(copy), title: "Copy a link to this feature (y)" }, "Copy link");
    return make("header", { className: "head" },
      make("div", { className: "name" }, badge(entry), make("h1", {}, entry.id), make("span", { className: "prefix" }, `prefix ${entry.prefix.toLocaleString("en")}`)),
      make("nav", { className: "tools", "aria-label": "Feature" }, add, copy),
      make("p", { className: "says" }, label(entry.label)));
  }

  const related = (feature, words) => make("li", {}, link(feature), make("small", {}, words));

  /* Coarse to fine: parents on the left, the feature, its children. */
  function nesting(entry, page) {
    const { coarser, finer } = page.relatives;
    const coarse = coarser.slice(0, 5).map(([feature, , given, lift, cosine]) => related(feature, `fires on ${percent(given)} of these tokens, lift ${number(lift)}, cosine ${number(cosine, 2)}`));
    const fine = finer.slice(0, 8).map(([feature, , given, , cosine]) => related(feature, `${percent(given)} of its firings are here, cosine ${number(cosine, 2)}`));
    const more = page.finer > 8 ? make("li", {}, make("small", {}, `and ${(page.finer - 8).toLocaleString("en")} more`)) : null;
    const none = (text) => make("li", { className: "none" }, text);
    return section("Nesting", "shorter prefixes on the left, longer ones on the right",
      make("div", { className: "nesting" },
        make("div", {}, make("h3", {}, "Coarser"), make("ul", {}, coarse.length ? coarse : none(entry.group ? "no feature of a shorter prefix is likelier when this one fires" : "it is in the shortest prefix"))),
        make("div", { className: "own" }, badge(entry), make("b", {}, entry.id)),
        make("div", {}, make("h3", {}, "Finer"), make("ul", {}, fine.length ? fine : none("no feature of a longer prefix has this one as its nearest coarser"), more))));
  }

  function tokens(title, rows, vocabulary) {
    const body = rows.slice(0, 10).map(([place, count, share, lift, recall]) => make("tr", { title: `${count.toLocaleString("en")} firings; ${percent(recall)} of all such tokens` },
      make("td", {}, token(vocabulary[place])),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * share}%` } }), make("span", {}, percent(share))),
      make("td", { className: "lift" }, `× ${number(lift)}`)));
    return make("div", {}, make("h3", {}, title), make("table", {}, make("tbody", {}, body)));
  }

  function effects(page) {
    const { vocabulary, logits } = page;
    if (!logits) return make("p", { className: "none" }, "No logits: the cache stores no unembedding, which is stored where it is small. Run features with --lm to take the language model's.");
    const top = Math.max(...logits.raised.map(([, value]) => value), ...logits.lowered.map(([, value]) => -value));
    const side = (title, rows, sign) => make("div", {}, make("h3", {}, title), make("table", { className: sign }, make("tbody", {}, rows.map(([place, value]) => make("tr", {},
      make("td", {}, token(vocabulary[place])),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * Math.abs(value) / top}%` } }), make("span", {}, `${value > 0 ? "+" : "−"}${number(Math.abs(value))}`)))))));
    const counts = page.logit_histogram, all = counts && make("div", {}, make("h3", {}, "All tokens of the vocabulary"),
      nestcoder.charts.histogram(counts, logits.raised[0][1], [], [], { width: 260, smallest: logits.lowered[0][1], unit: "tokens", axis: "effect" }));
    return make("div", { className: all ? "columns three" : "columns two" }, side("Raised", logits.raised, "raised"), side("Lowered", logits.lowered, "lowered"), all);
  }

  function neurons(page) {
    return make("table", { className: "raised" }, make("tbody", {}, page.neurons.map(([neuron, cosine]) => make("tr", { className: cosine < 0 ? "lowered" : "" },
      make("td", {}, `neuron ${neuron.toLocaleString("en")}`),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * Math.abs(cosine)}%` } }), make("span", {}, number(cosine, 2)))))));
  }

  /* The share of the decoder's squared norm at each layer that the feature writes to. */
  function writes(page) {
    return make("table", { className: "raised writes" }, make("tbody", {}, page.writes.map(([layer, share]) => make("tr", {},
      make("td", {}, `layer ${layer}`),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * share}%` } }), make("span", {}, percent(share)))))));
  }

  /* The feature while the dictionary was trained: how often it fired and on what, at a few steps. */
  function formed(page) {
    const { steps, rows } = nestcoder.index.head.formed;
    const most = Math.max(1, ...page.formed.map(([firings]) => firings));
    const body = page.formed.map(([firings, largest, places], place) => make("tr", { title: `${firings.toLocaleString("en")} of ${rows.toLocaleString("en")} rows, largest ${number(largest)}` },
      make("td", {}, steps[place].toLocaleString("en")),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * firings / most}%` } }), make("span", {}, percent(firings / rows))),
      make("td", { className: "chips" }, places.length ? places.map((one) => token(page.vocabulary[one])) : "–")));
    return make("table", { className: "formed" }, make("thead", {}, make("tr", {}, ["step", "fires on", "strongest on"].map((text) => make("th", {}, text)))), make("tbody", {}, body));
  }

  function kindName(name, page) {
    if (NAMES[name]) return NAMES[name];
    const place = Number(name.split("_")[1]), count = page.intervals.length;
    return `${100 / count * place}–${100 / count * (place + 1)} %`;
  }

  function kindNote(name, page) {
    if (NOTES[name]) return NOTES[name];
    const firings = page.intervals.reduce((sum, count) => sum + count, 0) || 1;
    const share = page.intervals[Number(name.split("_")[1])] / firings;
    return `Drawn from the firings in this stretch of the largest activation: ${percent(share)} of all.`;
  }

  function contexts(entry, page) {
    const list = make("ul", { className: "contexts" });
    const note = make("p", { className: "note" });
    const kinds = nestcoder.index.head.kinds;
    const tabs = kinds.map((name) => make("button", { type: "button", role: "tab", onclick: () => choose(name) }, kindName(name, page)));
    function choose(name) {
      kind = name;
      tabs.forEach((tab, place) => tab.setAttribute("aria-selected", String(kinds[place] === name)));
      note.textContent = kindNote(name, page);
      const shown = page.contexts[name].map((one) => context(one, page.vocabulary, entry.largest));
      list.replaceChildren(...(shown.length ? shown : [make("li", { className: "none" }, "none")]));
    }
    choose(kinds.includes(kind) ? kind : kinds[0]);
    const lines = make("button", { type: "button", className: "lines", title: "Show line breaks (l)", onclick: () => list.classList.toggle("broken") }, "Line breaks");
    return section("Contexts", null, make("div", { className: "tabs" }, make("div", { role: "tablist" }, tabs), lines), note, list);
  }

  function nearest(title, rows, words) {
    return make("div", {}, make("h3", {}, title), make("ul", { className: "related" }, rows.slice(0, 8).map((row) => related(row[0], words(row)))));
  }

  function view(entry, page, compared) {
    const { head: { percentiles } } = nestcoder.index;
    if (!entry.firings) {
      return make("article", {}, head(entry, compared), facts(entry, page), make("p", { className: "none" }, "This feature fired on none of the tokens that were replayed."),
        neighbours(page));
    }
    return make("article", {}, head(entry, compared), facts(entry, page), nesting(entry, page), contexts(entry, page),
      section("Tokens", "share of firings, and how many times more often than anywhere",
        make("div", { className: "columns three" },
          tokens("Before", page.tokens.before, page.vocabulary), tokens("Fires on", page.tokens.on, page.vocabulary), tokens("After", page.tokens.after, page.vocabulary))),
      make("div", { className: "columns two" },
        section("Activations", "counts as logarithms", nestcoder.charts.histogram(page.histogram, entry.largest, page.percentiles, percentiles)),
        section("Position in the context", "density", nestcoder.charts.positions(page.positions))),
      section("Effect on logits", "its decoder row through the final norm's gain and the unembedding, later blocks left out", effects(page)),
      page.writes ? section("Writes to", "share of the decoder's squared norm, in units in which every layer's target varies alike", writes(page)) : null,
      page.formed ? section("How it formed", "at steps of the training, on the first held-out rows", formed(page)) : null,
      page.neurons ? section("Neurons", "cosine of the decoder row with what each neuron of the layer's MLP writes", neurons(page)) : null,
      neighbours(page));
  }

  function neighbours(page) {
    const { decoder, encoder, near } = page.relatives;
    return section("Related features", null, make("div", { className: "columns three" },
      nearest("Same rows", near, ([, rows, given, lift, overlap]) => `overlap ${percent(overlap)}, lift ${number(lift)}`),
      nearest("Decoder", decoder, ([, cosine]) => `cosine ${number(cosine, 2)}`),
      nearest("Encoder", encoder, ([, cosine]) => `cosine ${number(cosine, 2)}`)));
  }

  /* One narrow column of the comparison. */
  function column(entry, page) {
    const shown = page.contexts.strongest.slice(0, 6).map((one) => context(one, page.vocabulary, entry.largest));
    const remove = make("button", { type: "button", onclick: () => nestcoder.app.toggleCompared(entry.feature), title: "Take out of the comparison" }, "Remove");
    return make("article", { className: "column" },
      make("header", { className: "head" }, make("div", { className: "name" }, link(entry.feature, false)), remove, make("p", { className: "says" }, label(entry.label))),
      facts(entry, page), nestcoder.charts.histogram(page.histogram, entry.largest || 1, page.percentiles, nestcoder.index.head.percentiles),
      tokens("Fires on", page.tokens.on, page.vocabulary), make("ul", { className: "contexts" }, shown));
  }

  /* How two of the compared features have to do with each other, as far as their pages say. */
  function between(features, pages) {
    const lines = [];
    features.forEach((one, first) => features.slice(first + 1).forEach((other) => {
      const found = (rows) => rows.find(([feature]) => feature === other);
      const { decoder, near, coarser } = pages[first].relatives;
      const words = [
        found(decoder) && `decoder cosine ${number(found(decoder)[1], 2)}`,
        found(near) && `overlap ${percent(found(near)[4])}, lift ${number(found(near)[3])}`,
        found(coarser) && `fires on ${percent(found(coarser)[2])} of the first one's tokens`,
      ].filter(Boolean).join("; ");
      lines.push(make("li", {}, link(one, false), " and ", link(other, false), `: ${words || "not among each other's nearest"}`));
    }));
    return make("ul", { className: "between" }, lines);
  }

  const compare = (features, pages) => make("div", { className: "compare" }, make("h1", {}, "Comparison"), between(features, pages),
    make("div", { className: `columns of-${features.length}` }, features.map((feature, place) => column(nestcoder.entry(feature), pages[place]))));

  const chooseTab = (place) => document.querySelectorAll("[role=tab]")[place]?.click();
  return { view, compare, chooseTab };
})();
