/* Small charts as inline SVG, in the page's own colours. */
"use strict";

nestcoder.charts = (() => {
  const { shape, number, percent } = nestcoder.draw;

  function frame(width, height, title) {
    const node = shape("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" });
    node.append(shape("title", {}, title));
    return node;
  }

  const words = (x, y, text, anchor = "start") => shape("text", { x, y, "text-anchor": anchor }, text);

  /* Heights of bars on a scale of logarithms: a feature fires weakly a thousand times for each strong time. */
  function histogram(counts, largest, percentiles, names, { width = 420, smallest = 0, unit = "firings", axis = "activation" } = {}) {
    const height = 132, bottom = 108, step = width / counts.length;
    const top = Math.log1p(Math.max(1, ...counts));
    const node = frame(width, height, `How many ${unit} have which ${axis}; heights are logarithms`);
    counts.forEach((count, place) => {
      const size = (bottom - 10) * Math.log1p(count) / top;
      const bar = shape("rect", { x: place * step + 0.5, y: bottom - size, width: step - 1, height: size, class: "bar" });
      const at = (step) => smallest + (largest - smallest) * step / counts.length;
      bar.append(shape("title", {}, `${number(at(place))} to ${number(at(place + 1))}: ${count.toLocaleString("en")} ${unit}`));
      node.append(bar);
    });
    node.append(shape("line", { x1: 0, x2: width, y1: bottom, y2: bottom, class: "axis" }));
    // The median is named first: a name that would stand on another is left out, its line is not.
    const taken = [];
    for (const name of [50, 5, 95].filter((one) => names.includes(one))) {
      const x = width * percentiles[names.indexOf(name)] / largest;
      const text = name === 50 ? "median" : `p${name}`, room = name === 50 ? 46 : 26, left = Math.min(x + 3, width - room);
      node.append(shape("line", { x1: x, x2: x, y1: 6, y2: bottom, class: "mark" }));
      if (taken.some(([from, to]) => left < to && left + room > from)) continue;
      taken.push([left, left + room]);
      node.append(words(left, 12, text));
    }
    node.append(words(0, height - 6, number(smallest)), words(width, height - 6, number(largest), "end"), words(width / 2, height - 6, axis, "middle"));
    return node;
  }

  /* Density over the stretches of the context. */
  function positions(rates) {
    const width = 420, height = 84, bottom = 62, step = width / rates.length;
    const top = Math.max(...rates) || 1;
    const node = frame(width, height, "How often the feature fires, by position in the context");
    rates.forEach((rate, place) => {
      const size = (bottom - 6) * rate / top;
      const bar = shape("rect", { x: place * step + 1, y: bottom - size, width: step - 2, height: size, class: "bar quiet" });
      bar.append(shape("title", {}, `stretch ${place + 1} of ${rates.length}: fires on ${percent(rate)}`));
      node.append(bar);
    });
    node.append(shape("line", { x1: 0, x2: width, y1: bottom, y2: bottom, class: "axis" }));
    node.append(words(0, height - 6, "begin of context"), words(width, height - 6, "end", "end"));
    return node;
  }

  /* Features by the power of ten of a positive number of theirs, one colour a prefix; words stand below at equal distances. */
  function distribution(title, values, prefixes, { first, last, names }) {
    const bins = 24, width = 420, height = 150, bottom = 124, step = width / bins;
    const table = Array.from({ length: bins }, () => new Array(prefixes.length).fill(0));
    let group = 0;
    values.forEach((value, feature) => {
      if (feature >= prefixes[group]) group++;
      if (!(value > 0)) return;
      const place = Math.floor((Math.log10(value) - first) / (last - first) * bins);
      table[Math.max(0, Math.min(bins - 1, place))][group] += 1;
    });
    const top = Math.max(1, ...table.map((row) => row.reduce((sum, count) => sum + count, 0)));
    const node = frame(width, height, title);
    table.forEach((row, place) => {
      let y = bottom;
      row.forEach((count, group) => {
        const size = (bottom - 10) * count / top;
        y -= size;
        if (count) node.append(shape("rect", { x: place * step + 1, y, width: step - 2, height: size, class: `group-${Math.min(group, 7)}` }));
      });
    });
    node.append(shape("line", { x1: 0, x2: width, y1: bottom, y2: bottom, class: "axis" }));
    const end = names.length - 1;
    names.forEach((text, place) => node.append(words(width * place / end, height - 8, text, place === 0 ? "start" : place === end ? "end" : "middle")));
    return node;
  }

  return { histogram, positions, distribution };
})();
