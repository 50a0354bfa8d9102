// Elements, icons and pictures, made without a library.

/** An element with attributes and children; text is text, never markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const barHeights = (counts) => {
  const most = Math.log1p(Math.max(...counts, 1));
  return counts.map((count) => Math.log1p(count) / most);
};

/** The outline of bars as a path from (0, height) to (width, height). */
function barsPath(heights, width, height) {
  const step = width / heights.length;
  const tops = heights.map(
    (part, i) => `V${(height * (1 - part)).toFixed(2)}H${((i + 1) * step).toFixed(2)}`,
  );
  return `M0 ${height}${tops.join("")}V${height}Z`;
}

/** A distribution as small as a line of text. */
function sparkline(seen, width = 72, height = 16) {
  const picture = svg("svg", {
    class: "spark",
    viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  });
  if (seen.histogram) {
    picture.append(svg("path", { d: barsPath(barHeights(seen.histogram.counts), width, height) }));
  } else if (seen.extremes.length > 1) picture.append(...channelBars(seen, width, height));
  else picture.append(...rangeBar(seen, width, height));
  return picture;
}

/** One range as a bar, with a tick at zero. */
function rangeBar(seen, width, height) {
  const [low, high] = extremesOf(seen),
    start = Math.min(low, 0),
    end = Math.max(high, 0);
  const x = (value) => (end === start ? 0 : ((value - start) / (end - start)) * (width - 1));
  return [
    svg("rect", { x: x(low), width: Math.max(x(high) - x(low), 1), y: height / 2 - 2, height: 4 }),
    svg("rect", { x: x(0), width: 1, y: 2, height: height - 4 }),
  ];
}

/** The range of each channel as a bar from its smallest to its largest value. */
function channelBars(seen, width, height) {
  const [low, high] = extremesOf(seen);
  const at = (value) => (high === low ? height / 2 : height - ((value - low) / (high - low)) * height);
  const step = width / seen.extremes.length,
    gap = step > 3 ? 1 : 0;
  return seen.extremes.map(([a, b], i) =>
    svg("rect", {
      x: (i * step).toFixed(2),
      width: Math.max(step - gap, 0.5).toFixed(2),
      y: at(b).toFixed(2),
      height: Math.max(at(a) - at(b), 1).toFixed(2),
    }),
  );
}

/** The real numbers that quantized values stand for: from the smallest to the largest. */
function representable(seen) {
  if (!seen.integers || seen.parameters?.count !== 1) return null;
  const {
    scale: [scale],
    zero_point: [zero],
  } = seen.parameters;
  return seen.integers.map((integer) => (integer - zero) * scale);
}

/** What an observer saw, with the range that quantization represents shaded. */
function histogramPicture(seen) {
  const width = 320,
    height = 110,
    [low, high] = extremesOf(seen);
  if (!seen.histogram && seen.extremes.length === 1) return rangePicture(seen, low, high);
  const area = svg("svg", { viewBox: `0 0 ${width} ${height + 18}`, class: "histogram", role: "img" });
  let describe = `Ranges of ${seen.extremes.length} groups of channels, from ${short(low)} to ${short(high)}`;
  if (seen.histogram) {
    const { low: start, width: step, counts } = seen.histogram;
    const end = start + step * counts.length;
    const x = (value) => Math.max(0, Math.min(width, ((value - start) / (end - start)) * width));
    const held = representable(seen);
    if (held)
      area.append(
        svg("rect", {
          class: "held",
          x: x(held[0]),
          width: Math.max(x(held[1]) - x(held[0]), 1),
          y: 0,
          height,
        }),
      );
    area.append(svg("path", { class: "bars", d: barsPath(barHeights(counts), width, height) }));
    if (held)
      for (const edge of held)
        if (edge > start && edge < end)
          area.append(svg("line", { class: "edge", x1: x(edge), x2: x(edge), y1: 0, y2: height }));
    if (start < 0 && end > 0)
      area.append(
        svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: height }),
        tick(x(0), height, "0", "middle"),
      );
    describe =
      `Histogram of values from ${short(low)} to ${short(high)}, counts on a logarithmic scale` +
      (held ? `; quantized values represent ${short(held[0])} to ${short(held[1])}` : "");
    area.append(tick(0, height, short(start), "start"), tick(width, height, short(end), "end"));
  } else {
    const bars = svg("g", { class: "bars" });
    bars.append(...channelBars(seen, width, height));
    area.append(bars);
    if (low < 0 && high > 0) {
      const y = height - ((0 - low) / (high - low)) * height;
      area.append(svg("line", { class: "zero", x1: 0, x2: width, y1: y, y2: y }));
    }
    area.append(
      tick(0, height, "channels →", "start"),
      tick(width, height, `${short(low)} … ${short(high)}`, "end"),
    );
  }
  area.setAttribute("aria-label", describe);
  return area;
}

function rangePicture(seen, low, high) {
  const held = representable(seen) ?? [low, high];
  const start = Math.min(low, held[0], 0),
    end = Math.max(high, held[1], 0),
    width = 320;
  const x = (value) => (end === start ? 0 : ((value - start) / (end - start)) * width);
  const area = svg("svg", {
    viewBox: `0 0 ${width} 52`,
    class: "histogram",
    role: "img",
    "aria-label": `Values from ${short(low)} to ${short(high)}; quantized values represent ${short(held[0])} to ${short(held[1])}`,
  });
  area.append(
    svg("rect", {
      class: "held",
      x: x(held[0]),
      width: Math.max(x(held[1]) - x(held[0]), 1),
      y: 4,
      height: 28,
    }),
    svg("rect", { class: "bar", x: x(low), width: Math.max(x(high) - x(low), 1), y: 12, height: 12 }),
    svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 34 }),
    tick(0, 34, short(start), "start"),
    tick(width, 34, short(end), "end"),
  );
  return area;
}

function tick(x, y, words, anchor) {
  const label = svg("text", { x, y: y + 14, "text-anchor": anchor, class: "tick" });
  label.append(words);
  return label;
}
