// The state of the page, and what follows when it changes.

const state = {
  at: stops.at(-1).index,
  base: "previous",
  split: false,
  only: false,
  weights: true,
  overlay: "decision",
  query: "",
  key: null,
  line: -1,
};

function update(changes) {
  Object.assign(state, changes);
  state.line = -1;
  grid.removeAttribute("aria-activedescendant");
  buildView();
  showGrid();
  showControls();
  showStrip();
  if (state.key !== null) reveal(state.key);
  showPanel();
  remember();
}

/** Build the lines anew after folding, the line of `id` staying the active one. */
function refresh(id) {
  buildView();
  showGrid();
  const at = view.at.get(id ?? state.key);
  if (at !== undefined) activate(at);
}

function select(key) {
  state.key = key;
  showPanel();
  redraw();
  if (key !== null && narrow.matches) grid.scrollIntoView({ block: "start" });
  remember();
}

/** Select a node wherever it is; where it is not, go to the last moment that has it. */
function go(key) {
  if (!view.b.rows.has(key) && !view.all.some((item) => item.key === key)) {
    state.key = key;
    update({ at: lastSeen(key).moment.index, base: "previous", query: "" });
    return;
  }
  if (!view.items.some((item) => item.key === key)) update({ query: "", only: false, weights: true });
  select(key);
  reveal(key);
}

let pending = 0;

function search(query) {
  const field = document.getElementById("query");
  if (field.value !== query) field.value = query;
  clearTimeout(pending);
  update({ query });
}

function showControls() {
  const { a, b, counts } = view;
  document.getElementById("when").replaceChildren(title(b), h("span", { class: "stage" }, b.stage));
  document
    .getElementById("counts")
    .replaceChildren(
      ...(a ? (badges(counts).length ? badges(counts) : ["no change"]) : []),
      h("span", { class: "note" }, `${b.order.length} nodes`),
    );
  const found = view.matches === null ? "" : `${view.matches} of ${view.total}`;
  document.getElementById("found").textContent = found && `${found} nodes`;
  document.getElementById("base").value = String(state.base);
  for (const name of ["split", "only", "weights"])
    document.getElementById(name).setAttribute("aria-pressed", String(state[name]));
  document.getElementById("split").disabled = !a;
  for (const radio of document.querySelectorAll("#overlays input"))
    radio.checked = radio.value === state.overlay;
  showLegend();
}

function showLegend() {
  const overlay = OVERLAYS.find(({ id }) => id === state.overlay),
    counted = new Map();
  let width = 0;
  for (const { key, b } of view.all) {
    const chip = b && overlay.chip(b, key, view.b);
    if (chip) width = Math.max(width, chipWidth(chip));
    if (chip?.facet) counted.set(chip.facet, { chip, count: (counted.get(chip.facet)?.count ?? 0) + 1 });
  }
  grid.style.setProperty("--chip", `${width}px`);
  const entries = [...counted.values()].sort((x, y) => y.count - x.count),
    most = 14;
  const words = ({ chip }) => (chip.facet.startsWith("group:") ? chip.facet.slice(6) : chip.text);
  document.getElementById("legend").replaceChildren(
    ...entries.slice(0, most).map((entry) => {
      const active = state.query.split(/\s+/).includes(entry.chip.facet);
      return h(
        "button",
        {
          type: "button",
          class: "facet",
          "aria-pressed": String(active),
          onclick: () => search(active ? "" : entry.chip.facet),
        },
        chipElement({ ...entry.chip, text: words(entry), title: null }),
        h("span", { class: "count" }, `${entry.count}`),
      );
    }),
    entries.length ? "" : (overlay.note ?? "None of these nodes has one."),
    entries.length > most ? h("span", { class: "note" }, `and ${entries.length - most} more`) : "",
  );
}

function buildControls() {
  const base = document.getElementById("base");
  base.append(
    h("option", { value: "previous" }, "pass before"),
    h("option", { value: "none" }, "nothing"),
    ...stops.map((moment) => h("option", { value: moment.index }, `${moment.verb}: ${label(moment)}`)),
  );
  base.addEventListener("change", () =>
    update({ base: /^\d+$/.test(base.value) ? +base.value : base.value }),
  );
  for (const name of ["split", "only", "weights"])
    document.getElementById(name).addEventListener("click", () => update({ [name]: !state[name] }));
  document
    .getElementById("overlays")
    .append(
      ...OVERLAYS.map(({ id, label: words }) =>
        h(
          "label",
          {},
          h("input", { type: "radio", name: "overlay", value: id, onchange: () => update({ overlay: id }) }),
          h("span", {}, words),
        ),
      ),
    );
  const query = document.getElementById("query");
  query.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(() => update({ query: query.value }), 80);
  });
  query.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    search(query.value);
    grid.focus();
    activate(view.lines.findIndex((line) => line.item));
  });
  grid.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  grid.addEventListener("focus", () => {
    // A click chooses a line itself.
    if (state.line < 0 && grid.matches(":focus-visible"))
      activate(Math.floor(grid.scrollTop / HEIGHT), { scroll: false, choose: false });
  });
  canvas.addEventListener("click", (event) => {
    const line = event.target.closest("[data-line]");
    if (!line) return;
    const i = +line.dataset.line;
    if (view.lines[i].group) toggleFold(i);
    else activate(i);
  });
  narrow.addEventListener("change", () => update({}));
  new ResizeObserver(() => redraw()).observe(grid);
  document.addEventListener("keydown", onKey);
  document.getElementById("show-help").addEventListener("click", () => help.showModal());
}

function showFigures() {
  const passes = moments.filter((moment) => moment.position > 0),
    seconds = passes.reduce((sum, moment) => sum + (moment.seconds ?? 0), 0);
  const { quantized, total, line } = raw.runs.at(-1).coverage;
  const output = errors && [...errors.values()].filter((error) => !error.own).at(-1);
  const figures = [
    ["passes", passes.length],
    ["nodes", `${moments[0].order.length} → ${moments.at(-1).order.length}`],
    passes.some((moment) => moment.seconds !== null) && ["in passes", milliseconds(seconds)],
    total && ["float operators quantized", `${quantized} of ${total}`, line],
    output && ["signal to noise", decibels(output)],
  ].filter(Boolean);
  document
    .getElementById("figures")
    .replaceChildren(
      ...figures.map(([name, value, title]) => h("div", { title }, h("dt", {}, name), h("dd", {}, `${value}`))),
    );
}

function remember() {
  const words = new URLSearchParams({
    at: state.at,
    overlay: state.overlay,
    ...(state.key === null ? {} : { node: state.key }),
    ...(state.base === "previous" ? {} : { base: state.base }),
  });
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1)),
    number = (name) => (/^\d+$/.test(words.get(name) ?? "") ? +words.get(name) : null);
  const at = number("at"),
    node = number("node"),
    base = number("base");
  if (moments[at]) state.at = at;
  if (moments[base] || words.get("base") === "none") state.base = base ?? "none";
  if (node !== null && lastSeen(node)) state.key = node;
  if (OVERLAYS.some(({ id }) => id === words.get("overlay"))) state.overlay = words.get("overlay");
}

recall();
buildStrip();
buildControls();
buildHelp();
update({});
showFigures();
document.documentElement.dataset.ready = performance.now().toFixed(0);
