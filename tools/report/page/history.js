// What changed between two moments, and the history of one node.

const MARKS = { added: "+", removed: "−", changed: "~", moved: "↕", same: "" };

const equal = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

/** In what respects a node changed; rows are shared, so one that did not change is the same object. */
function aspects(a, b) {
  if (a === b) return [];
  const found = [];
  if (a.op !== b.op || a.target !== b.target) found.push("retargeted");
  if (!equal(a.inputs, b.inputs)) found.push("rewired");
  if (!equal(a.args, b.args)) found.push("edited");
  if (!equal(a.specs, b.specs) || a.groups !== b.groups || a.kernel !== b.kernel) found.push("annotated");
  if (a.name !== b.name) found.push("renamed");
  if (a.type !== b.type) found.push("typed");
  if (a.value !== b.value) found.push("new values");
  return found;
}

/** The members of `after` that keep their order from `before`, as many as can be (patience sorting). */
function keptOrder(before, after) {
  const position = new Map(before.map((key, i) => [key, i]));
  const tails = [],
    ends = [],
    previous = new Map();
  for (const key of after) {
    const at = position.get(key);
    let low = 0,
      high = tails.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tails[middle] < at) low = middle + 1;
      else high = middle;
    }
    previous.set(key, low ? ends[low - 1] : undefined);
    tails[low] = at;
    ends[low] = key;
  }
  const kept = new Set();
  for (let key = ends.at(-1); key !== undefined; key = previous.get(key)) kept.add(key);
  return kept;
}

const comparisons = new Map();

/** Both moments in one list of items, removed nodes where they stood. `a` may be null. */
function compare(a, b) {
  const id = `${a ? a.index : ""}-${b.index}`;
  if (!comparisons.has(id)) comparisons.set(id, a ? merge(a, b) : alone(b));
  return comparisons.get(id);
}

const alone = (b) =>
  arranged(b).map((key) => ({ key, a: null, b: b.rows.get(key), state: "same", aspects: [] }));

function merge(a, b) {
  const common = (order, other) => order.filter((key) => other.rows.has(key));
  const kept = keptOrder(common(a.order, b), common(b.order, a));
  const [behind, ahead] = removedNodes(a, b);
  const removed = (key) => ({ key, a: a.rows.get(key), b: null, state: "removed", aspects: ["removed"] });
  const items = (behind.get(undefined) ?? []).map(removed);
  for (const key of arranged(b)) {
    items.push(...(ahead.get(key) ?? []).map(removed));
    const old = a.rows.get(key) ?? null,
      row = b.rows.get(key);
    const changes = old ? aspects(old, row) : ["added"];
    if (old && !kept.has(key)) changes.push("moved");
    const state = !old
      ? "added"
      : changes.some((change) => change !== "moved")
        ? "changed"
        : changes.length
          ? "moved"
          : "same";
    items.push({ key, a: old, b: row, state, aspects: changes });
    items.push(...(behind.get(key) ?? []).map(removed));
  }
  return items;
}

/**
 * What is in `a` alone, by the node it stands behind and by the one it stands ahead of. Nodes stay with those
 * of their module.
 */
function removedNodes(a, b) {
  const behind = new Map(),
    ahead = new Map();
  let last,
    waiting = [];
  const settle = (next) => {
    const stays = (key) => last !== undefined && a.paths.get(key) === a.paths.get(last);
    const cut = next === undefined ? waiting.length : waiting.findIndex((key) => !stays(key));
    const at = cut < 0 ? waiting.length : cut;
    if (at) behind.set(last, waiting.slice(0, at));
    if (at < waiting.length) ahead.set(next, waiting.slice(at));
    waiting = [];
  };
  for (const key of arranged(a)) {
    if (!b.rows.has(key)) waiting.push(key);
    else {
      settle(key);
      last = key;
    }
  }
  settle(undefined);
  return [behind, ahead];
}

/** How many nodes were added, removed, changed and moved. */
function countStates(items) {
  const counts = { added: 0, removed: 0, changed: 0, moved: 0 };
  for (const { state } of items) if (state !== "same") counts[state]++;
  return counts;
}

const before = (moment) => moments[moment.index - 1] ?? null;

/** What became of a node, pass by pass. */
function historyOf(key) {
  const events = [];
  for (const moment of stops) {
    const then = before(moment);
    const old = then?.rows.get(key) ?? null,
      row = moment.rows.get(key) ?? null;
    if (!old && !row) continue;
    const changes = !old ? [moment.index ? "added" : "given"] : !row ? ["removed"] : aspects(old, row);
    if (changes.length) events.push({ moment, then, old, row, changes });
  }
  return events;
}
