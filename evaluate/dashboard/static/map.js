/* The map of the dictionary: a dot a feature on a canvas, near to what it fires with or writes like. Drag to move, wheel to zoom. */
"use strict";

nestcoder.map = (() => {
  const { make, label, badge } = nestcoder.draw;
  const STEPS = 4095, REACH = 9, MOST = 60;
  const state = { colour: "prefix", scale: 1, x: 0.5, y: 0.5, canvas: null, near: -1, marked: new Set() };

  /* Features to pixels of the canvas's own box, its upper left corner being 0. The box is asked for once: a map has a hundred thousand dots. */
  function projection() {
    const { clientWidth: width, clientHeight: height } = state.canvas, { map } = nestcoder.index;
    const size = Math.min(width, height) * state.scale;
    return (feature) => [width / 2 + (map[2 * feature] / STEPS - state.x) * size, height / 2 - (map[2 * feature + 1] / STEPS - state.y) * size];
  }

  const pixels = (feature) => projection()(feature);

  function colours() {
    const style = getComputedStyle(document.documentElement);
    return Array.from({ length: 8 }, (_, group) => style.getPropertyValue(`--group-${group}`).trim());
  }

  const coloured = (feature, group) => (state.colour === "cluster" ? (nestcoder.index.cluster[feature] < 0 ? -1 : nestcoder.index.cluster[feature] % 8) : Math.min(group, 7));

  function draw() {
    const { canvas } = state;
    if (!canvas || !canvas.isConnected) return;
    const ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), palette = colours(), { firings, labels } = nestcoder.index;
    pen.scale(ratio, ratio);
    const radius = Math.max(1.2, Math.min(3.4, 90 / Math.sqrt(labels.length))) * Math.min(3, Math.sqrt(state.scale));
    const { prefixes } = nestcoder.index.head.transcoder, at = projection();
    let group = prefixes.length - 1;
    // The long prefixes first, so that the few features of the short ones lie on top.
    for (let feature = labels.length - 1; feature >= 0; feature--) {
      while (group > 0 && feature < prefixes[group - 1]) group--;
      if (!firings[feature]) continue;
      const [x, y] = at(feature);
      if (x < -5 || y < -5 || x > width + 5 || y > height + 5) continue;
      const isMarked = state.marked.has(feature), colour = coloured(feature, group);
      dot(pen, x, y, (isMarked ? 1.5 : 1) * radius * (group === 0 ? 1.7 : 1), {
        alpha: state.marked.size && !isMarked ? 0.12 : 0.8, fill: colour < 0 ? "#888" : palette[colour],
      });
    }
  }

  /* Of a dot of three pixels nobody sees that it is a square, which is drawn many times as fast. */
  function dot(pen, x, y, radius, { alpha, fill }) {
    pen.globalAlpha = alpha;
    pen.fillStyle = fill;
    if (radius < 1.6) return pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    return pen.fill();
  }

  /* The feature nearest to a place of the canvas, -1 where none is in reach. */
  function nearest(x, y) {
    const at = projection();
    let best = -1, least = REACH * REACH;
    for (let feature = 0; feature < nestcoder.index.labels.length; feature++) {
      if (!nestcoder.index.firings[feature]) continue;
      const [left, top] = at(feature), square = (left - x) ** 2 + (top - y) ** 2;
      if (square < least) { least = square; best = feature; }
    }
    return best;
  }

  function zoom(factor, x, y) {
    const { clientWidth: width, clientHeight: height } = state.canvas;
    const size = Math.min(width, height) * state.scale, scale = Math.max(1, Math.min(MOST, state.scale * factor));
    const next = Math.min(width, height) * scale;
    // What is under the pointer stays under it.
    state.x += (x - width / 2) * (1 / size - 1 / next);
    state.y -= (y - height / 2) * (1 / size - 1 / next);
    state.scale = scale;
    draw();
  }

  function point(event) {
    const tip = document.getElementById("tip");
    state.near = nearest(event.offsetX, event.offsetY);
    state.canvas.style.cursor = state.near < 0 ? "grab" : "pointer";
    tip.hidden = state.near < 0;
    if (state.near < 0) return;
    const entry = nestcoder.entry(state.near);
    tip.replaceChildren(badge(entry), make("b", {}, entry.id), make("span", {}, label(entry.label, true)));
    tip.style.left = `${Math.max(8, Math.min(innerWidth - tip.offsetWidth - 8, event.clientX + 12))}px`;
    tip.style.top = `${Math.min(innerHeight - tip.offsetHeight - 8, event.clientY + 14)}px`;
  }

  function listen(canvas) {
    let from = null, moved = 0;
    canvas.addEventListener("pointerdown", (event) => { from = [event.offsetX, event.offsetY]; moved = 0; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", () => { from = null; });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return point(event);
      const size = Math.min(canvas.clientWidth, canvas.clientHeight) * state.scale;
      state.x -= (event.offsetX - from[0]) / size;
      state.y += (event.offsetY - from[1]) / size;
      moved += Math.abs(event.offsetX - from[0]) + Math.abs(event.offsetY - from[1]);
      from = [event.offsetX, event.offsetY];
      return draw();
    });
    canvas.addEventListener("pointerleave", () => { document.getElementById("tip").hidden = true; });
    canvas.addEventListener("click", (event) => {
      const feature = moved > 4 ? -1 : nearest(event.offsetX, event.offsetY);
      if (feature >= 0) location.hash = `/${nestcoder.entry(feature).id}`;
    });
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY); }, { passive: false });
  }

  /* A map with its buttons; ``marked`` features stand out, the others fade. */
  function view(marked = []) {
    Object.assign(state, { scale: 1, x: 0.5, y: 0.5, marked: new Set(marked) });
    state.canvas = make("canvas", { className: "map", role: "img", "aria-label": "Map of the features; the list beside it has the same features" });
    listen(state.canvas);
    new ResizeObserver(draw).observe(state.canvas);
    const middle = (factor) => zoom(factor, state.canvas.clientWidth / 2, state.canvas.clientHeight / 2);
    const choice = make("select", { "aria-label": "Colour", onchange: () => { state.colour = choice.value; draw(); } },
      ["prefix", "cluster"].map((name) => make("option", { value: name, selected: name === state.colour }, `colour: ${name}`)));
    return make("div", { className: "mapped" }, state.canvas,
      make("div", { className: "zoom" }, choice, make("button", { type: "button", title: "Nearer", onclick: () => middle(1.6) }, "+"), make("button", { type: "button", title: "Further", onclick: () => middle(1 / 1.6) }, "−")));
  }

  new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  return { view, pixels };
})();
