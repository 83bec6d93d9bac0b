/* Two plots: FVU against L0 over runs, and a metric over training. Colours are given to runs by whoever calls. */
"use strict";

nestcoder.plots = (() => {
  const { shape, number } = nestcoder.draw;
  const WIDTH = 620, HEIGHT = 330, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 40;

  /* Round numbers between two bounds; on a scale of logarithms 1, 2 and 5 of each power of ten, where these are enough. */
  function ticks(low, high, isLog) {
    if (isLog) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
        for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
      }
      const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
      if (inside.length >= 3) return inside;
    }
    const raw = (high - low || 1) / (isLog ? 8 : 5), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= raw);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
    return found;
  }

  function scale(values, isLog, from, to) {
    let low = Math.min(...values), high = Math.max(...values);
    if (isLog) { low /= 1.12; high *= 1.12; } else if (low === high) { low -= 1; high += 1; }
    const of = isLog ? Math.log10 : (value) => value;
    const place = (value) => from + (to - from) * (of(value) - of(low)) / (of(high) - of(low) || 1);
    return { place, ticks: ticks(low, high, isLog) };
  }

  function frame(title, x, y, xName, yName) {
    const node = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img" });
    node.append(shape("title", {}, title));
    const words = (left, top, text, anchor) => shape("text", { x: left, y: top, "text-anchor": anchor }, text);
    for (const value of y.ticks) {
      const top = y.place(value);
      node.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: top, y2: top, class: "grid" }), words(LEFT - 6, top + 4, number(value, 2), "end"));
    }
    for (const value of x.ticks) node.append(words(x.place(value), HEIGHT - BOTTOM + 17, number(value, 3), "middle"));
    node.append(words(WIDTH - RIGHT, HEIGHT - 6, xName, "end"), words(4, TOP + 2, yName, "start"));
    return node;
  }

  /* A line through each run's prefixes; its whole dictionary is the large dot. */
  function tradeOff(runs, colour, chosen, choose) {
    const points = runs.flatMap((run) => run.pairs);
    if (!points.length) return null;
    const x = scale(points.map(([l0]) => l0), true, LEFT + 8, WIDTH - RIGHT - 8);
    const y = scale(points.map(([, fvu]) => fvu), true, HEIGHT - BOTTOM, TOP + 14);
    const node = frame("Fraction of variance unexplained against active features, one line a run", x, y, "L0", "FVU");
    for (const run of runs) {
      const group = shape("g", { "data-run": run.id });
      group.style.setProperty("--group", colour(run));
      group.append(shape("polyline", { points: run.pairs.map(([l0, fvu]) => `${x.place(l0)},${y.place(fvu)}`).join(" "), class: "chain" }));
      run.pairs.forEach(([l0, fvu, prefix], place) => {
        const isWhole = place === run.pairs.length - 1;
        const dot = shape("circle", { cx: x.place(l0), cy: y.place(fvu), r: isWhole ? 5.5 : 3, class: `dot${isWhole ? "" : " small"}${isWhole && chosen.has(run.id) ? " chosen" : ""}` });
        dot.append(shape("title", {}, `${run.id}, ${prefix.toLocaleString("en")} features: FVU ${number(fvu, 4)}, L0 ${number(l0, 3)}`));
        dot.addEventListener("click", () => choose(run.id));
        group.append(dot);
      });
      node.append(group);
    }
    return node;
  }

  /* One curve a run, or a dot where the run has one point; values above 0 that span more than a factor of twenty are drawn on a scale of logarithms. */
  function training(runs, name, colour) {
    const drawn = runs.filter((run) => run.log[name]);
    const points = drawn.flatMap((run) => run.log[name]);
    if (!points.length) return null;
    const values = points.map(([, value]) => value);
    const least = Math.min(...values), isLog = least > 0 && Math.max(...values) / least > 20;
    const x = scale(points.map(([step]) => step), false, LEFT + 8, WIDTH - RIGHT - 8);
    const y = scale(values, isLog, HEIGHT - BOTTOM, TOP + 14);
    x.ticks = x.ticks.filter(Number.isInteger);
    const node = frame(`${name} over training`, x, y, "step", name.replaceAll("_", " "));
    for (const run of drawn) {
      const places = run.log[name].map(([step, value]) => [x.place(step), y.place(value)]);
      const curve = places.length > 1
        ? shape("polyline", { points: places.join(" "), class: "curve" })
        : shape("circle", { cx: places[0][0], cy: places[0][1], r: 4, class: "dot" });
      curve.style.setProperty("--group", colour(run));
      curve.append(shape("title", {}, run.id));
      node.append(curve);
    }
    return node;
  }

  return { tradeOff, training };
})();
