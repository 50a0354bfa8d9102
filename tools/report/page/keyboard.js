// The keys. They work wherever no text is being typed.

const KEYS = [
  [
    "Graph",
    [
      ["↑ ↓ or j k", "previous and next line"],
      ["→ ←", "unfold and fold a module; ← also goes to the module around"],
      ["Page Up, Page Down, Home, End", "by pages, to the ends"],
      ["Enter", "fold or unfold; on a node, go to its details"],
      ["+ −", "unfold and fold everything"],
    ],
  ],
  [
    "Passes",
    [
      ["[ ]", "previous and next pass"],
      ["b", "compare with the pass shown now"],
      ["Shift and a click on a pass", "compare with that pass"],
    ],
  ],
  [
    "View",
    [
      ["s", "one column or side by side"],
      ["c", "only what changed"],
      ["w", "with or without parameters"],
      [
        `1 to ${OVERLAYS.length}`,
        `beside each node: ${OVERLAYS.map(({ label: words }) => words.toLowerCase()).join(", ")}`,
      ],
      ["/", "search"],
      ["Esc", "leave the search, close the details"],
      ["?", "this list"],
    ],
  ],
];

function buildHelp() {
  document.getElementById("keys").replaceChildren(
    ...KEYS.map(([name, keys]) =>
      h(
        "section",
        {},
        h("h3", {}, name),
        h(
          "dl",
          {},
          keys.flatMap(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)]),
        ),
      ),
    ),
  );
  document.getElementById("fields").textContent = Object.keys(FIELDS)
    .map((field) => `${field}:`)
    .join("  ");
}

const help = document.getElementById("help");

const ANYWHERE = {
  "/": () => document.getElementById("query").focus(),
  "?": () => help.showModal(),
  "[": () => step(-1),
  "]": () => step(1),
  b: () => update({ base: state.at }),
  s: () => update({ split: !state.split }),
  c: () => update({ only: !state.only }),
  w: () => update({ weights: !state.weights }),
  "+": () => foldAll(false),
  "-": () => foldAll(true),
  j: () => walk(1),
  k: () => walk(-1),
  Escape: () => (state.query ? search("") : select(null)),
};

/** Go to the next line; into the graph at the first that is in sight. */
function walk(by) {
  const to = state.line < 0 ? Math.floor(grid.scrollTop / HEIGHT) : state.line + by;
  grid.focus();
  activate(to);
}

const page = () => Math.max(1, Math.floor(grid.clientHeight / HEIGHT) - 2);

const IN_GRID = {
  ArrowDown: () => activate(state.line + 1),
  ArrowUp: () => activate(state.line - 1),
  PageDown: () => activate(state.line + page()),
  PageUp: () => activate(state.line - page()),
  Home: () => activate(0),
  End: () => activate(view.lines.length - 1),
  ArrowRight: () => {
    const line = view.lines[state.line];
    if (line?.group && line.folded) toggleFold(state.line, false);
    else if (line?.group) activate(state.line + 1);
  },
  ArrowLeft: () => {
    const line = view.lines[state.line];
    if (line?.group && !line.folded) toggleFold(state.line, true);
    else if (line && line.parent >= 0) activate(line.parent);
  },
  Enter: () => {
    if (view.lines[state.line]?.group) toggleFold(state.line);
    else panel.focus();
  },
  " ": () => toggleFold(state.line),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  const typing = event.target.matches("input[type=search], select");
  const inGrid = event.target === grid,
    inStrip = event.target.closest?.("#strip");
  let act = null;
  if (typing)
    act = event.key === "Escape" && event.target.id === "query" ? () => (search(""), grid.focus()) : null;
  else if (inGrid && IN_GRID[event.key]) act = IN_GRID[event.key];
  else if (inStrip && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    act = () => {
      step(event.key === "ArrowRight" ? 1 : -1);
      document.querySelector('.stop[aria-current="true"]').focus();
    };
  } else if (/^[1-9]$/.test(event.key) && OVERLAYS[+event.key - 1])
    act = () => update({ overlay: OVERLAYS[+event.key - 1].id });
  else act = ANYWHERE[event.key] ?? null;
  if (act) {
    event.preventDefault();
    act();
  }
}
