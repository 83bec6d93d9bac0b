/* The first page: what was looked at, the prefixes, where to begin. */
"use strict";

nestcoder.overview = (() => {
  const { make, number, percent, link } = nestcoder.draw;
  const SHOWN = 6;
  const KEYS = [["/", "search"], ["j k", "next, previous in the list"], ["← →", "next, previous number"], ["p", "nearest coarser feature"], ["1 … 8", "kind of contexts"],
    ["c", "into the comparison"], ["v", "show the comparison"], ["l", "line breaks"], ["t", "dark or light"], ["y", "copy the link"], ["Esc", "clear the search, go back"]];

  const DISTRIBUTIONS = [
    ["Density", "share of tokens on which a feature fires; colours are prefixes", { values: ({ firings, head }) => firings.map((count) => count / head.tokens), first: -6, last: 0, names: ["1 in 1M", "1 in 10k", "1 in 100", "always"] }],
    ["Largest activation", "of each feature that fires", { values: ({ largest }) => largest, first: -2, last: 4, names: ["0.01", "1", "100", "10,000"] }],
    ["What it explains", "rise of the FVU when a feature is left out", { values: ({ lost }) => lost, first: -8, last: -1, names: ["1e-8", "1e-1"] }],
  ];

  function prefixes() {
    const { head, firings } = nestcoder.index;
    let start = 0;
    const rows = head.transcoder.prefixes.map((end, group) => {
      const own = firings.slice(start, end), silent = own.filter((count) => count === 0).length;
      start = end;
      return make("tr", {}, make("td", {}, make("i", { className: "badge", style: { "--group": `var(--group-${Math.min(group, 7)})` } }), ` ${end.toLocaleString("en")}`),
        make("td", {}, number(head.fvu_per_prefix[group], 4)), make("td", {}, own.length.toLocaleString("en")), make("td", {}, percent(silent / own.length)));
    });
    return make("table", { className: "prefixes" },
      make("thead", {}, make("tr", {}, ["prefix", "FVU", "features it adds", "of these silent"].map((text) => make("th", {}, text)))), make("tbody", {}, rows));
  }

  /* The few features from start to end whose values are largest, without sorting all of them. */
  function largest(values, start, end) {
    const best = [];
    for (let feature = start; feature < end; feature++) {
      if (best.length === SHOWN && !(values[feature] > values[best[SHOWN - 1]])) continue;
      best.push(feature);
      best.sort((a, b) => values[b] - values[a]);
      best.length = Math.min(best.length, SHOWN);
    }
    return best;
  }

  /* Features to begin with: of each prefix group those that explain most. */
  function beginnings() {
    const { head, lost } = nestcoder.index;
    let start = 0;
    return head.transcoder.prefixes.map((end) => {
      const best = largest(lost, start, end);
      start = end;
      return make("div", {}, make("h3", {}, `Prefix ${end.toLocaleString("en")}`), make("ul", { className: "related" }, best.map((feature) => make("li", {}, link(feature)))));
    });
  }

  function view() {
    const { head, labels } = nestcoder.index;
    const { cache, transcoder } = head;
    const text = cache.dataset && (cache.dataset.name || cache.dataset.kind) || "text";
    const checked = head.self_check ? `${head.self_check.contexts} contexts were encoded anew and gave these values.` : "";
    const logits = head.logits ? `Logits are by the unembedding of ${head.logits.from}.` : "The cache stores no unembedding and --lm was not given, so there are no logits.";
    return make("article", { className: "overview" },
      make("h1", {}, `${cache.model.split("/").pop()}, layer ${cache.layer}`),
      make("p", { className: "says" }, `${labels.length.toLocaleString("en")} features of the transcoder “${transcoder.name}”, on ${head.tokens.toLocaleString("en")} ${head.split === "train" ? "training" : "held-out"} tokens of ${head.documents.toLocaleString("en")} documents (${text}); ${number(head.l0)} fire on a token.`),
      make("section", {}, make("h2", {}, "Prefixes"), prefixes()),
      make("section", {}, make("h2", {}, "Map", make("small", {}, "near: fire on the same rows, or write alike; large dots are the shortest prefix")), nestcoder.map.view()),
      make("section", {}, make("h2", {}, "Clusters"), nestcoder.clusters.list()),
      make("div", { className: "columns two" }, DISTRIBUTIONS.map(([title, note, form]) => make("section", {}, make("h2", {}, title, make("small", {}, note)),
        nestcoder.charts.distribution(`Features by ${title.toLowerCase()}, coloured by prefix`, form.values(nestcoder.index), transcoder.prefixes, form)))),
      make("section", {}, make("h2", {}, "Where to begin", make("small", {}, "features whose absence costs most")), make("div", { className: "columns two" }, beginnings())),
      make("section", {}, make("h2", {}, "Keys"), make("dl", { className: "keys" }, KEYS.map(([key, meaning]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, meaning))))),
      make("p", { className: "note" }, `${checked} ${logits} Special tokens count nowhere. Cache ${cache.fingerprint.slice(0, 12)}.`));
  }

  return { view };
})();
