// What the report wrote down: rows by number, moments as what changed since the one before.

const raw = JSON.parse(document.getElementById("data").textContent);
const text = (number) => raw.strings[number];

const NODE = "\ue000"; // stands for an input in the text of an argument
const OUTPUT = -1; // among specs: that of the output
const LITERAL = -1; // in an order: what follows is a node itself

const decodeRow = ([
  name,
  op,
  target,
  args,
  inputs,
  type,
  module,
  source,
  specs,
  groups,
  kernel,
  value,
  body,
  maker,
  from,
]) => ({
  name: text(name),
  op: text(op),
  target: text(target),
  args: args.map(text),
  inputs,
  type: text(type),
  module: text(module),
  source: text(source),
  specs: specs.map(([of, spec]) => [of, text(spec)]),
  groups: text(groups),
  kernel: text(kernel),
  value: text(value),
  body: text(body),
  madeBy: text(maker),
  madeFrom: from,
});

function decodeOrder(pieces, before) {
  const order = [];
  for (let i = 0; i < pieces.length; i += 2) {
    if (pieces[i] === LITERAL) order.push(pieces[i + 1]);
    else for (let k = 0; k < pieces[i + 1]; k++) order.push(before[pieces[i] + k]);
  }
  return order;
}

const allRows = raw.rows.map(decodeRow);
const parameters = new Map(raw.parameters.map(([op, ...names]) => [text(op), names.map(text)]));
const kinds = new Map(raw.kinds.map(([path, kind]) => [text(path), text(kind)]));

/** The graph at every moment, of all runs in a row. */
const moments = [];
for (const [run, { verb, moments: inRun }] of raw.runs.entries()) {
  for (const [position, { after, stage, seconds, order, rows }] of inRun.entries()) {
    const before = moments.at(-1);
    const now = new Map();
    const changed = new Map();
    for (let i = 0; i < rows.length; i += 2) changed.set(rows[i], allRows[rows[i + 1]]);
    const keys = decodeOrder(order, before ? before.order : []);
    for (const key of keys) now.set(key, changed.get(key) ?? before.rows.get(key));
    moments.push({
      index: moments.length,
      run,
      verb,
      position,
      pass: text(after),
      name: text(after).split("{")[0],
      stage,
      seconds,
      order: keys,
      rows: now,
    });
  }
}

const decisions = raw.runs.map(
  ({ decisions: made }) =>
    new Map(
      made.map(([key, status, reason, detail, kernel, intended]) => [
        key,
        {
          status: text(status),
          reason: text(reason),
          detail: text(detail),
          kernel: text(kernel),
          intended: !!intended,
        },
      ]),
    ),
);

const errors =
  raw.errors && new Map(raw.errors.map(([key, sqnr, largest, own]) => [key, { sqnr, largest, own: !!own }]));

/** What was observed, by the node that observes, the node that is observed, and those that quantize it. */
const observationOf = new Map();
for (const seen of raw.observations) {
  for (const key of seen.calls) observationOf.set(key, seen);
}
for (const seen of raw.observations) {
  for (const key of seen.tensors) if (!observationOf.has(key)) observationOf.set(key, seen);
}
for (const moment of moments) {
  for (const [key, row] of moment.rows) {
    const seen = observationOf.get(row.inputs[0]);
    if (
      seen &&
      /^quantized_decomposed\.(quantize_per|convert_element)/.test(row.target) &&
      !observationOf.has(key)
    )
      observationOf.set(key, seen);
  }
}

/** What happened to the observers before a run: its graph came calibrated, or trained. */
const filled = (moment) =>
  moments[moment.index - 1]?.verb === "prepare for training" ? "train" : "calibrate";

function label(moment) {
  if (moment.position > 0) return moment.name;
  if (moment.index === 0) return "input";
  return moment.stage === "OBSERVED" ? filled(moment) : "hand over";
}

function title(moment) {
  if (moment.position > 0) return `After ${moment.name}`;
  if (moment.index === 0) return "The model as it came";
  if (moment.stage !== "OBSERVED") return `Before ${moment.verb}`;
  return filled(moment) === "train" ? "Trained" : "Calibrated";
}

/** The passes that matter to people; a run that begins with what the last one left adds nothing. */
const stops = moments.filter(
  (moment) => moment.position > 0 || moment.index === 0 || moment.stage === "OBSERVED" || differs(moment),
);

function differs(moment) {
  const { order, rows } = raw.runs[moment.run].moments[0];
  return rows.length > 0 || order.length > 2;
}

const shortOp = (target) => target.replace(/\.default$/, "");
const dtypeOf = (row) => /^\(*([a-z]+\d*)\[/.exec(row.type)?.[1] ?? "";
const signatureName = (row, i) => {
  const named = /^(\w+)=/.exec(row.args[i]);
  return named ? named[1] : (parameters.get(row.target)?.[i] ?? "");
};
const nameAt = (moment, key) => {
  const row = moment.rows.get(key) ?? lastSeen(key)?.row;
  return row ? row.name : "?";
};

/** The latest moment that has a node, and its row there. */
function lastSeen(key) {
  for (let i = moments.length - 1; i >= 0; i--) {
    const row = moments[i].rows.get(key);
    if (row) return { moment: moments[i], row };
  }
  return null;
}

/** The arguments of a row as text, its inputs by the names they have at `moment`. */
function argumentText(row, moment) {
  let next = 0;
  return row.args
    .map((argument) => argument.replaceAll(NODE, () => nameAt(moment, row.inputs[next++])))
    .join(", ");
}

function rowText(row, moment) {
  const args = argumentText(row, moment);
  if (row.op === "placeholder" || row.op === "get_attr") return `${row.name} = ${row.op} ${row.target}`;
  return row.op === "output" ? `return ${args}` : `${row.name} = ${shortOp(row.target)}(${args})`;
}

function usersOf(moment) {
  if (!moment.users) {
    moment.users = new Map();
    for (const [key, row] of moment.rows) {
      for (const source of new Set(row.inputs)) {
        if (!moment.users.has(source)) moment.users.set(source, []);
        moment.users.get(source).push(key);
      }
    }
  }
  return moment.users;
}
