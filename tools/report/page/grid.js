// The graph: a line a node, folded by module. Only the lines in sight are in the page.

const HEIGHT = 26,
  OVERSCAN = 12;
const grid = document.getElementById("grid"),
  canvas = document.getElementById("canvas");
const folds = new Map(); // what people folded and unfolded, by module
let view = { items: [], lines: [], matches: 0 };

const narrow = matchMedia("(max-width: 760px)");

/** Two columns need room. */
const isSplit = () => state.split && !!view.a && !narrow.matches;

function buildView() {
  const b = moments[state.at];
  const a = state.base === "previous" ? before(b) : state.base === "none" ? null : moments[state.base];
  const all = compare(a, b);
  const constants = constantsOf(b),
    old = a && constantsOf(a);
  const found = parseQuery(state.query, b);
  const items = all.filter(
    (item) =>
      (state.weights || !(item.b ? constants : old).has(item.key)) && (!state.only || item.state !== "same"),
  );
  const shown = found ? items.filter(found) : items;
  const root = outline(shown, a, b);
  const narrowed = !!found || state.only,
    many = shown.length > 400;
  const isFolded = (group) => folds.get(group.id) ?? (!narrowed && many && group.items.length <= 60);
  view = {
    a,
    b,
    all,
    items: shown,
    root,
    lines: linesOf(root, isFolded),
    counts: countStates(all),
    matches: found ? shown.length : null,
    total: items.length,
  };
  view.at = new Map(view.lines.map((line, i) => [line.item ? line.item.key : line.group.id, i]));
}

function showGrid() {
  grid.classList.toggle("split", isSplit());
  grid.setAttribute("aria-rowcount", view.lines.length + 1);
  canvas.style.height = `${Math.max(view.lines.length, 1) * HEIGHT}px`;
  showHeader();
  drawn = [0, 0];
  canvas.replaceChildren();
  if (!view.lines.length)
    canvas.append(
      h("div", { role: "row", class: "line empty" }, h("div", { role: "gridcell" }, emptyText())),
    );
  draw();
}

const emptyText = () =>
  state.query
    ? "No node matches the search."
    : state.only
      ? `Nothing changed between these two. Press c to see the whole graph.`
      : "The graph has no nodes.";

function showHeader() {
  const overlay = OVERLAYS.find(({ id }) => id === state.overlay);
  const column = (words, kind) => h("div", { role: "columnheader", class: kind }, words);
  const extra = overlay.id === "none" ? [] : [column(overlay.label, "chip")];
  document
    .getElementById("header")
    .replaceChildren(
      ...(isSplit()
        ? [
            column(title(view.a), "code"),
            ...extra,
            column(title(view.b), "code later"),
            ...extra.map((one) => one.cloneNode(true)),
          ]
        : [column("Node", "code"), column("Value", "type"), ...extra]),
    );
  grid.classList.toggle("plain", overlay.id === "none");
}

let drawn = [0, 0];

function draw() {
  const top = Math.max(0, Math.floor(grid.scrollTop / HEIGHT) - OVERSCAN);
  const bottom = Math.min(
    view.lines.length,
    Math.ceil((grid.scrollTop + grid.clientHeight) / HEIGHT) + OVERSCAN,
  );
  if (!view.lines.length || (top === drawn[0] && bottom === drawn[1])) return;
  drawn = [top, bottom];
  const pieces = [];
  for (let i = top; i < bottom; i++) pieces.push(lineElement(view.lines[i], i));
  canvas.replaceChildren(...pieces);
}

function redraw() {
  drawn = [0, 0];
  draw();
}

function lineElement(line, i) {
  const active = state.line === i;
  const common = {
    role: "row",
    id: `line-${i}`,
    "aria-rowindex": i + 2,
    "aria-level": line.depth + 1,
    "aria-selected": active ? "true" : "false",
    style: `transform:translateY(${i * HEIGHT}px);--depth:${line.depth}`,
    "data-line": i,
  };
  return line.group
    ? h(
        "div",
        { ...common, class: "line group", "aria-expanded": line.folded ? "false" : "true" },
        groupCells(line),
      )
    : h("div", { ...common, class: `line node ${line.item.state}` }, nodeCells(line.item));
}

function groupCells({ group, folded }) {
  const kind = (kinds.get(group.path) ?? "").split(".").at(-1);
  const counts = countStates(group.items);
  return [
    h(
      "div",
      { role: "gridcell", class: "code" },
      h("span", { class: "twist", "aria-hidden": "true" }, folded ? "▸" : "▾"),
      h("span", { class: "module" }, group.label),
      kind ? h("span", { class: "kind" }, kind) : null,
      h("span", { class: "size" }, `${group.items.length}`, h("span", { class: "hidden" }, " nodes")),
      view.a ? badges(counts) : null,
      folded ? summary(group) : null,
    ),
  ];
}

/** What the overlay says about the nodes of a folded module, as a bar. */
function summary(group) {
  const overlay = OVERLAYS.find(({ id }) => id === state.overlay);
  if (!["dtype", "decision"].includes(overlay.id)) return null;
  const counted = new Map();
  for (const { key, b } of group.items) {
    const chip = b && overlay.chip(b, key, view.b);
    if (chip) counted.set(chip.family, (counted.get(chip.family) ?? 0) + 1);
  }
  const total = [...counted.values()].reduce((sum, count) => sum + count, 0);
  return total
    ? h(
        "span",
        { class: "mix", "aria-hidden": "true" },
        [...counted].map(([family, count]) =>
          h("span", { class: `family ${family}`, style: `width:${(count / total) * 100}%` }),
        ),
      )
    : null;
}

function nodeCells(item) {
  const mark = h(
    "span",
    { class: "mark", title: item.aspects.join(", ") },
    MARKS[item.state],
    item.state === "same" ? null : h("span", { class: "hidden" }, ` ${item.aspects.join(", ")}: `),
  );
  const side = (row, moment, kind, lead) => [
    h(
      "div",
      { role: "gridcell", class: `code ${kind}` },
      lead,
      row ? codeOf(row, moment) : h("span", { class: "absent" }, "·"),
    ),
    chipCell(row, item.key, moment),
  ];
  if (isSplit())
    return [...side(item.a, view.a, "earlier", mark), ...side(item.b, view.b, "later", null)].filter(Boolean);
  const row = item.b ?? item.a,
    moment = item.b ? view.b : view.a;
  const [code, chip] = side(row, moment, "", mark);
  return [code, h("div", { role: "gridcell", class: "type" }, row.type), chip].filter(Boolean);
}

function codeOf(row, moment) {
  if (row.op === "output")
    return [
      h("span", { class: "op" }, "return"),
      h("span", { class: "args" }, ` ${argumentText(row, moment)}`),
    ];
  const words =
    row.op === "placeholder" || row.op === "get_attr"
      ? row.op
      : shortOp(row.target).replace(/^quantized_decomposed\./, "");
  const cut = words.indexOf(".") + 1;
  const args =
    row.op === "placeholder" ? "" : row.op === "get_attr" ? row.target : `(${argumentText(row, moment)})`;
  return [
    h("span", { class: "name" }, row.name),
    h("span", { class: "equals" }, " = "),
    h("span", { class: "space" }, words.slice(0, cut)),
    h("span", { class: "op" }, words.slice(cut)),
    h("span", { class: "args" }, row.op === "get_attr" ? ` ${args}` : args),
  ];
}

function chipCell(row, key, moment) {
  if (state.overlay === "none") return null;
  const chip = row && OVERLAYS.find(({ id }) => id === state.overlay).chip(row, key, moment);
  return h("div", { role: "gridcell", class: "chip" }, chip ? chipElement(chip) : null);
}

/** The width that a chip needs, in pixels: its text is in a font of which every letter is 7 wide. */
const chipWidth = ({ text: words, sign, picture, bar }) =>
  16 + words.length * 7 + (sign ? 13 : 0) + (picture ? 77 : 0) + (bar === undefined ? 0 : 49);

function chipElement(chip) {
  const style = chip.hue === undefined ? null : `--hue:${chip.hue.toFixed(0)}`;
  return h(
    "span",
    { class: `pill family ${chip.family ?? "hue"}`, style, title: chip.title },
    chip.picture ? sparkline(chip.picture) : null,
    chip.bar === undefined
      ? null
      : h("span", { class: "meter" }, h("span", { style: `width:${(chip.bar * 100).toFixed(0)}%` })),
    chip.sign ? h("span", { class: "sign", "aria-hidden": "true" }, chip.sign) : null,
    chip.text,
  );
}

/** Make a line the active one, and bring it into sight. */
function activate(i, { scroll = true, choose = true } = {}) {
  if (!view.lines.length) return;
  state.line = Math.max(0, Math.min(view.lines.length - 1, i));
  grid.setAttribute("aria-activedescendant", `line-${state.line}`);
  const head = document.getElementById("header").offsetHeight,
    top = state.line * HEIGHT;
  if (scroll) {
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + HEIGHT + head > grid.scrollTop + grid.clientHeight)
      grid.scrollTop = top + HEIGHT + head - grid.clientHeight;
  }
  redraw();
  const { item } = view.lines[state.line];
  if (choose && item && item.key !== state.key) select(item.key);
}

function toggleFold(i, folded = !view.lines[i].folded) {
  const { group } = view.lines[i];
  if (!group) return;
  folds.set(group.id, folded);
  refresh(group.id);
}

function foldAll(folded) {
  const walk = (group) =>
    group.children
      .filter((child) => child.children)
      .forEach((child) => {
        folds.set(child.id, folded);
        walk(child);
      });
  walk(view.root);
  refresh(null);
}

/** Show the line of a node, whatever has to be unfolded for it. */
function reveal(key) {
  if (!view.at.has(key)) {
    const open = (group) =>
      group.children.some((child) =>
        child.children
          ? child.items.some((item) => item.key === key) && (folds.set(child.id, false), open(child), true)
          : child.key === key,
      );
    if (open(view.root)) {
      buildView();
      showGrid();
    }
  }
  const at = view.at.get(key);
  if (at !== undefined) {
    state.line = at;
    const middle = at * HEIGHT - grid.clientHeight / 2;
    if (at * HEIGHT < grid.scrollTop || (at + 2) * HEIGHT > grid.scrollTop + grid.clientHeight)
      grid.scrollTop = middle;
    grid.setAttribute("aria-activedescendant", `line-${at}`);
    redraw();
  }
  return at !== undefined;
}
