/* Clusters of features: their list, and the page of one. */
"use strict";

nestcoder.clusters = (() => {
  const { make, token, link } = nestcoder.draw;
  const SHOWN = 24;

  const address = (number) => `#/cluster/${nestcoder.index.head.cache.layer}/${number}`;

  const tokens = (number) => nestcoder.index.clusters[number][1].map((place) => token(nestcoder.index.vocabulary[place]));

  const members = (number) => nestcoder.index.cluster.flatMap((one, feature) => (one === number ? [feature] : []));

  const entry = (number) => make("li", {}, make("a", { className: "cluster", href: address(number) },
    make("b", {}, `cluster ${number}`), make("small", {}, ` ${nestcoder.index.clusters[number][0].toLocaleString("en")} features `), tokens(number)));

  function list() {
    const count = nestcoder.index.clusters.length;
    if (!count) return make("p", { className: "none" }, "No three features belong together.");
    const more = count > SHOWN ? make("p", { className: "note" }, `and ${(count - SHOWN).toLocaleString("en")} smaller ones; a feature's page names its own.`) : null;
    return make("div", {}, make("ul", { className: "related columns two" }, Array.from({ length: Math.min(count, SHOWN) }, (_, number) => entry(number))), more);
  }

  /* All features of a cluster, those that explain most first, and where they lie. */
  function view(number) {
    if (!(number < nestcoder.index.clusters.length)) throw new Error(`There is no cluster ${number} here.`);
    const { lost } = nestcoder.index;
    const own = members(number).sort((one, other) => lost[other] - lost[one]);
    return make("article", {}, make("h1", {}, `Cluster ${number}`),
      make("p", { className: "says" }, `${own.length.toLocaleString("en")} features that fire on the same rows or write alike, on `, tokens(number)),
      nestcoder.map.view(own),
      make("section", {}, make("h2", {}, "Features", make("small", {}, "those that explain most first")), make("ul", { className: "related" }, own.map((feature) => make("li", {}, link(feature))))));
  }

  return { list, view, address };
})();
