/* What is shown follows from the address behind "#": "/8/123" a feature, "/compare/8/1+8/2" several, "/cluster/8/0" a cluster, nothing the overview; on a phone nothing is the list, and "/overview" the overview. */
"use strict";

nestcoder.app = (() => {
  const { make } = nestcoder.draw;
  const MOST_COMPARED = 4;
  const main = document.getElementById("main");
  const tip = document.getElementById("tip");
  let compared = [];
  let current = -1;
  let asked = 0;

  function parsed(text) {
    const match = text.match(/^(\d+)\/(\d+)$/);
    const { head, labels } = nestcoder.index;
    if (!match || Number(match[1]) !== Number(head.cache.layer) || Number(match[2]) >= labels.length) return -1;
    return Number(match[2]);
  }

  /* Draw what the address names; a page that was asked for and left again is not drawn. */
  async function route() {
    const turn = ++asked;
    const address = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
    const cluster = address.match(/^cluster\/(\d+)\/(\d+)$/);
    const several = address.startsWith("compare/") ? address.slice(8).split("+").map(parsed).filter((feature) => feature >= 0).slice(0, MOST_COMPARED) : [];
    const overview = address === "" || address === "overview";
    const features = several.length ? several : overview || cluster ? [] : [parsed(address)];
    document.body.classList.toggle("reading", address !== "");
    try {
      if (features.includes(-1)) throw new Error(`There is no feature ${address} here.`);
      const pages = await Promise.all(features.map(nestcoder.page));
      if (turn !== asked) return;
      current = several.length || !features.length ? -1 : features[0];
      if (several.length) compared = several;
      const view = several.length ? nestcoder.feature.compare(several, pages) : features.length ? nestcoder.feature.view(nestcoder.entry(current), pages[0], compared) : cluster ? nestcoder.clusters.view(Number(cluster[2])) : nestcoder.overview.view();
      main.replaceChildren(bar(), ...cautions(), view);
      document.title = features.length ? features.map((feature) => nestcoder.entry(feature).id).join(" and ") : "Features";
    } catch (error) {
      if (turn !== asked) return;
      main.replaceChildren(bar(), make("p", { className: "none" }, `${error.message}`));
    }
    main.scrollTop = 0;
    nestcoder.list.show(current);
  }

  function bar() {
    const count = compared.length;
    return make("nav", { className: "bar", "aria-label": "Pages" },
      make("a", { href: "#/", className: "back" }, "All features"),
      nestcoder.index.head.all_layers ? make("a", { href: nestcoder.index.head.all_layers, className: "back layers" }, "All layers") : null,
      count ? make("a", { className: "compared", href: `#/compare/${compared.map((feature) => nestcoder.entry(feature).id).join("+")}` }, `Compare ${count} (v)`) : null,
      make("button", { type: "button", className: "theme", onclick: turnTheme, title: "Dark or light (t)" }, "◐"));
  }

  /* On every page, because a link leads past the first one. */
  const cautions = () => nestcoder.index.head.cautions.map((text) => make("p", { className: "caution", role: "note" }, text));

  function toggleCompared(feature) {
    const without = compared.filter((one) => one !== feature);
    compared = without.length < compared.length ? without : [...without, feature].slice(-MOST_COMPARED);
    if (location.hash.startsWith("#/compare/")) location.hash = compared.length ? `/compare/${compared.map((one) => nestcoder.entry(one).id).join("+")}` : "/";
    else route();
  }

  async function copyLink(button) {
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.replaceWith(make("input", { className: "address", readOnly: true, value: location.href, onfocus: (event) => event.target.select() }));
    }
  }

  /* What the visitor chose, kept where the browser lets a page from disk keep anything. */
  function turnTheme() {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("nestcoder-theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
  }

  function restoreTheme() {
    try {
      const theme = localStorage.getItem("nestcoder-theme");
      if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
    } catch { /* none was kept */ }
  }

  const go = (feature) => { if (feature !== undefined && feature >= 0 && feature < nestcoder.index.labels.length) location.hash = `/${nestcoder.entry(feature).id}`; };

  const KEYS = {
    "/": () => nestcoder.list.focus(),
    j: () => go(nestcoder.list.beside(1)),
    k: () => go(nestcoder.list.beside(-1)),
    ArrowRight: () => go(current + 1),
    ArrowLeft: () => go(current - 1),
    p: () => current >= 0 && go(nestcoder.index.parent[current]),
    c: () => current >= 0 && toggleCompared(current),
    v: () => document.querySelector(".compared")?.click(),
    l: () => document.querySelector(".lines")?.click(),
    y: () => document.querySelector(".tools button:last-child")?.click(),
    t: turnTheme,
    Escape: () => { location.hash = "/"; },
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const writes = event.target.matches("input, select, textarea");
    if (writes && event.key === "Escape") return nestcoder.list.clear();
    if (writes && event.key === "Enter") return go(nestcoder.list.beside(0));
    if (writes) return undefined;
    if (/^[1-9]$/.test(event.key)) return nestcoder.feature.chooseTab(Number(event.key) - 1);
    if (!KEYS[event.key]) return undefined;
    event.preventDefault();
    return KEYS[event.key]();
  }

  /* The value of the token under the pointer, or under a finger. */
  function point(event) {
    const token = event.target.closest?.(".t");
    tip.hidden = !token;
    if (!token) return;
    tip.replaceChildren(make("b", {}, token.dataset.token), make("span", {}, token.dataset.value));
    const box = token.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, box.left))}px`;
    tip.style.top = `${box.top > 60 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
  }

  restoreTheme();
  document.addEventListener("keydown", pressed);
  document.addEventListener("pointerover", point);
  document.addEventListener("click", point);
  main.addEventListener("scroll", () => { tip.hidden = true; });
  nestcoder.ready.then(() => {
    nestcoder.list.build(document.getElementById("side"));
    addEventListener("hashchange", route);
    return route();
  }).catch((error) => main.replaceChildren(make("p", { className: "none" }, `The data beside this page does not read: ${error.message}. It needs a browser of 2023 or later.`)));
  return { toggleCompared, copyLink };
})();
