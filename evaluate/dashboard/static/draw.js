/* Elements, numbers and tokens. Every text goes in as a text node: no string of a token is ever parsed as HTML. */
"use strict";

nestcoder.draw = (() => {
  const SIGNS = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
  // Marks that turn the direction of writing, and what has no shape: shown as a dot, or a token could hide or move text.
  const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
  const SVG = "http://www.w3.org/2000/svg";

  /* An element: properties by name, "data-" and "aria-" ones as attributes, children as nodes or text. */
  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null) continue;
      if (name.includes("-") || name === "role") node.setAttribute(name, value);
      else if (name === "style") for (const [key, entry] of Object.entries(value)) node.style.setProperty(key, entry);
      else node[name] = value;
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  function shape(tag, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.flat());
    return node;
  }

  const visible = (text) => text.replace(/[\n\t\r]/g, (sign) => SIGNS[sign]).replace(UNSEEN, "·");

  /* A number in a few characters: four digits, thousands apart, small ones with an exponent. */
  function number(value, digits = 3) {
    if (!Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
    const size = Math.abs(value);
    const text = size < 1e-3 ? value.toExponential(1) : size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
    return text.replaceAll("-", "−");
  }

  const percent = (share) => (share > 0 && share < 0.0001 ? "< 0.01 %" : `${Number((100 * share).toPrecision(share < 0.1 ? 2 : 3))} %`);

  // A chip of thirty blanks says nothing: runs of them are counted, and a token that is nothing else is seen.
  const blanks = (run) => (run.length > 1 ? `␣×${run.length}` : "␣");
  const counted = (text) => (/^ +$/.test(text) ? blanks(text) : text.replace(/ {2,}/g, blanks)).replace(/([⏎⇥])\1{2,}/g, (run) => `${run[0]}×${run.length}`);

  /* A token in a table or a label: its blanks are kept and seen. */
  const token = (text) => make("code", { className: "token" }, counted(visible(text)));

  /* A label, in a list without its first words: what stands between backticks is a token. */
  function label(text, isShort = false) {
    return (isShort ? text.replace(/^fires on (many tokens, such as )?/, "") : text).split("`").map((part, place) => (place % 2 ? token(part) : document.createTextNode(part)));
  }

  /* A line of text, each token shaded by the feature's value on it. */
  function context([documentNumber, row, at, places, pairs], vocabulary, largest) {
    const values = new Map();
    for (let place = 0; place < pairs.length; place += 2) values.set(pairs[place], pairs[place + 1]);
    const tokens = places.map((place, position) => piece(vocabulary[place], values.get(position) || 0, largest, position === at));
    const value = values.get(at);
    return make("li", { className: "context" },
      make("span", { className: "where", title: `document ${documentNumber}, row ${row}` },
        make("b", {}, value === undefined ? "0" : number(value)), make("small", {}, `doc ${documentNumber}`)),
      make("p", { className: "text" }, tokens));
  }

  function piece(text, value, largest, isCentre) {
    const node = make("span", { className: isCentre ? "t centre" : "t" }, visible(text));
    if (value > 0) {
      node.classList.add("fires");
      node.style.setProperty("--heat", (0.1 + 0.75 * Math.min(1, value / largest)).toFixed(3));
    }
    node.dataset.value = value ? `${number(value, 4)}  ·  ${percent(value / largest)} of the largest` : "0";
    node.dataset.token = visible(text);
    return text.includes("\n") ? make("span", {}, node, make("br", { className: "line" })) : node;
  }

  /* A link to a feature, with the colour of its prefix. */
  function link(feature, withLabel = true) {
    const entry = nestcoder.entry(feature);
    return make("a", { className: "feature", href: `#/${entry.id}` },
      badge(entry), make("b", {}, entry.id), withLabel ? make("span", { className: "label" }, label(entry.label, true)) : null);
  }

  const badge = ({ group, prefix }) =>
    make("i", { className: "badge", title: `prefix ${prefix.toLocaleString("en")}`, style: { "--group": `var(--group-${Math.min(group, 7)})` } });

  return { make, shape, number, percent, token, label, context, link, badge, visible };
})();
