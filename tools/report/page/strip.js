// The pipeline as a strip: a column a pass, as high as the graph is large.

const milliseconds = (seconds) =>
  seconds === null
    ? ""
    : seconds >= 1
      ? `${seconds.toFixed(2)} s`
      : `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;

function countsOf(moment) {
  moment.counts ??= moment.index
    ? countStates(compare(before(moment), moment))
    : { added: 0, removed: 0, changed: 0, moved: 0 };
  return moment.counts;
}

const countText = (counts) =>
  ["added", "removed", "changed", "moved"]
    .filter((state) => counts[state])
    .map((state) => `${counts[state]} ${state}`)
    .join(", ") || "nothing changed";

const badges = (counts) =>
  ["added", "removed", "changed", "moved"]
    .filter((state) => counts[state])
    .map((state) => h("span", { class: `badge ${state}` }, `${MARKS[state]}${counts[state]}`));

function buildStrip() {
  const most = Math.max(...stops.map((moment) => moment.order.length));
  const groups = raw.runs
    .map(({ verb }, run) => ({ verb, run, stops: stops.filter((moment) => moment.run === run) }))
    .filter((group) => group.stops.length);
  const strip = document.getElementById("strip");
  strip.replaceChildren(
    ...groups.map(({ verb, run, stops: inRun }) => {
      const total = moments
        .filter((moment) => moment.run === run)
        .reduce((sum, { seconds }) => sum + (seconds ?? 0), 0);
      const time = raw.runs[run].moments[0].seconds === null ? "" : milliseconds(total);
      return h(
        "div",
        {
          class: "run",
          role: "group",
          "aria-label": verb,
          style: `flex:${inRun.length} 0 ${inRun.length * 86}px`,
        },
        h(
          "div",
          { class: "run-head" },
          h("span", { class: "verb" }, verb),
          h("span", { class: "time" }, time),
        ),
        h(
          "div",
          { class: "stops" },
          inRun.map((moment) => stopButton(moment, most)),
        ),
      );
    }),
  );
}

function stopButton(moment, most) {
  const counts = countsOf(moment),
    isPass = moment.position > 0;
  const idle = isPass && countText(counts) === "nothing changed";
  const tall = (count) => `height:${((count / most) * 100).toFixed(1)}%`;
  const seen =
    moment.stage === "OBSERVED" && !isPass ? raw.observations.filter((one) => one.has_data).length : 0;
  const facts = isPass
    ? badges(counts)
    : h("span", { class: "note" }, seen ? `${seen} observers` : moment.stage);
  const words = `${label(moment)}: ${countText(counts)}, ${moment.order.length} nodes${isPass && moment.seconds !== null ? `, ${milliseconds(moment.seconds)}` : ""}`;
  return h(
    "button",
    {
      type: "button",
      class: `stop${idle ? " idle" : ""}${isPass ? "" : " station"}`,
      "data-moment": moment.index,
      "aria-label": words,
      title: moment.pass || title(moment),
      tabindex: -1,
      onclick: (event) =>
        event.shiftKey ? update({ base: moment.index }) : update({ at: moment.index, base: "previous" }),
    },
    h(
      "span",
      { class: "column" },
      h("span", { class: "part same", style: tall(moment.order.length - counts.added - counts.changed) }),
      h("span", { class: "part changed", style: tall(counts.changed) }),
      h("span", { class: "part added", style: tall(counts.added) }),
    ),
    h(
      "span",
      { class: "stop-name" },
      ...label(moment)
        .split(/(?<=-)/)
        .flatMap((part) => [part, h("wbr")]),
    ),
    h("span", { class: "facts" }, facts, idle ? h("span", { class: "note" }, "no change") : null),
    h("span", { class: "note" }, `${moment.order.length} nodes`),
    h("span", { class: "note" }, isPass ? milliseconds(moment.seconds) : ""),
  );
}

function showStrip() {
  const base = state.base === "previous" ? null : state.base;
  for (const button of document.querySelectorAll(".stop")) {
    const index = +button.dataset.moment,
      current = index === state.at;
    button.toggleAttribute("data-base", index === base);
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.tabIndex = current ? 0 : -1;
    if (current) {
      const strip = document.getElementById("strip"),
        left = button.offsetLeft - strip.offsetLeft;
      if (left < strip.scrollLeft) strip.scrollLeft = left - 24;
      else if (left + button.offsetWidth > strip.scrollLeft + strip.clientWidth)
        strip.scrollLeft = left + button.offsetWidth - strip.clientWidth + 24;
    }
  }
}

function step(by) {
  const at = stops.findIndex((moment) => moment.index === state.at) + by;
  if (at >= 0 && at < stops.length)
    update({ at: stops[at].index, base: state.base === "none" ? "none" : "previous" });
}
