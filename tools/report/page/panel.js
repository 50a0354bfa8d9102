// What is known about the selected node, or about the pass if there is none.

const panel = document.getElementById("panel");

const section = (name, ...content) => h("section", {}, h("h3", {}, name), content);
const facts = (pairs) =>
  h(
    "dl",
    {},
    pairs.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
const code = (words) => h("code", {}, words);

function nodeLink(key, moment, words) {
  const row = moment.rows.get(key);
  return h(
    "button",
    { type: "button", class: "link", onclick: () => go(key) },
    words ?? row?.name ?? nameAt(moment, key),
  );
}

function showPanel() {
  const found =
    state.key !== null &&
    (view.b.rows.get(state.key) ? { moment: view.b, row: view.b.rows.get(state.key) } : lastSeen(state.key));
  panel.replaceChildren(...(found ? nodePanel(state.key, found.row, found.moment) : passPanel(view.b)));
  panel.scrollTop = 0;
  document.body.classList.toggle("open", !!found);
}

const heading = (above, name, below) =>
  h(
    "header",
    {},
    h("p", { class: "above" }, above),
    h("h2", {}, name),
    below ? h("p", { class: "below" }, below) : null,
    h("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => select(null) }, "×"),
  );

const MOST_OPERATORS = 12;

function passPanel(moment) {
  const items = moment.index ? compare(before(moment), moment) : [];
  const respects = new Map();
  for (const item of items)
    if (item.state === "changed") item.aspects.forEach((aspect) => count(respects, aspect));
  const options = moment.pass.includes("{") ? moment.pass.slice(moment.name.length) : "";
  return [
    heading(moment.verb, label(moment), options),
    section(
      "Graph",
      facts([
        ["Stage", moment.stage],
        ["Nodes", `${moment.order.length}`],
        ["Took", moment.position ? milliseconds(moment.seconds) : ""],
        ["Changes", moment.index ? countText(countStates(items)) : ""],
        [
          "In what",
          byCount(respects)
            .map(([aspect, n]) => `${n} ${aspect}`)
            .join(", "),
        ],
      ]),
    ),
    tally("Added", items, "added"),
    tally("Removed", items, "removed"),
    tally("Changed", items, "changed"),
    outcome(moment),
    h(
      "p",
      { class: "note" },
      "Choose a line of the graph to see where the node comes from and what became of it. Press ? for the keys.",
    ),
  ].filter(Boolean);
}

const count = (counted, what) => counted.set(what, (counted.get(what) ?? 0) + 1);
const byCount = (counted) => [...counted].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1));

/** Which operators the items of one state call. */
function tally(name, items, state) {
  const targets = new Map();
  for (const item of items) {
    const { op, target } = item.b ?? item.a;
    const words = { call_module: "observer or module", call_function: shortOp(target) }[op] ?? op;
    if (item.state === state) count(targets, words);
  }
  const line = ([words, n]) =>
    h("li", { class: state }, h("span", { class: "count" }, `${MARKS[state]}${n}`), " ", code(words));
  const listed = byCount(targets).slice(0, MOST_OPERATORS).map(line);
  return listed.length ? section(name, h("ul", { class: "tally" }, listed)) : null;
}

/** The decisions as they were in the end, by reason: first what runs in low precision. */
function outcome(moment) {
  const reasons = new Map();
  for (const made of decisions[moment.run].values()) {
    const id = `${verdict(made).sign} ${made.reason}`;
    reasons.set(id, { made, n: (reasons.get(id)?.n ?? 0) + 1 });
  }
  if (!reasons.size) return null;
  const isLow = ({ made }) => made.status === "quantized";
  const sorted = [...reasons.values()].sort((x, y) => isLow(y) - isLow(x) || y.n - x.n);
  const line = ({ made, n }) => {
    const link = h(
      "button",
      { type: "button", class: "link", onclick: () => search(`reason:${made.reason}`) },
      made.reason,
    );
    const pill = h("span", { class: `pill family ${verdict(made).family}` }, `${verdict(made).sign} `, link);
    return h("li", {}, h("span", { class: "count" }, `${n}`), " ", pill);
  };
  return section(
    `Decisions, at the end of ${moment.verb}`,
    h("p", { class: "covered" }, raw.runs[moment.run].coverage.line.split(";")[0]),
    h("ul", { class: "tally" }, sorted.map(line)),
  );
}
