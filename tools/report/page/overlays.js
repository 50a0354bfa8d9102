// What is shown beside each node: one aspect at a time, as a short text with a colour.

const short = (value) =>
  value === 0
    ? "0"
    : Number(value)
        .toPrecision(4)
        .replace(/\.?0+(?=$|e)/, "");

const FAMILY = {
  f64: "float",
  f32: "float",
  f16: "half",
  bf16: "half",
  i8: "byte",
  u8: "byte",
  i16: "wide",
  i32: "wide",
  i64: "wide",
  bool: "wide",
};

const dtypeChip = (row) => {
  const dtype = dtypeOf(row);
  return dtype ? { text: dtype, family: FAMILY[dtype] ?? "half", facet: `dtype:${dtype}` } : null;
};

/** The sharing groups of a node: of its own points while it is annotated, else of the tensor it stands for. */
function groupsOf(key, row) {
  const named = [...row.groups.matchAll(/(\S+) g(\d+)/g)].map(([, what, group]) => ({
    what: what.replace("%", ""),
    group: +group,
  }));
  const seen = observationOf.get(key);
  if (named.length || !seen || seen.group === null) return named;
  return [{ what: "", group: seen.group }];
}

const sharingChip = (row, key) => {
  const groups = groupsOf(key, row);
  if (!groups.length) return null;
  const main = groups.find(({ what }) => what === "out") ?? groups[0];
  return {
    text: groups.map(({ group }) => `g${group}`).join(" "),
    hue: (main.group * 137.5) % 360,
    facet: `group:g${main.group}`,
    title: groups.map(({ what, group }) => `${what || "this tensor"}: group ${group}`).join("\n"),
  };
};

function decisionOf(key, row, moment) {
  const made = decisions[moment.run].get(key);
  if (made) return made;
  if (!row.kernel) return null;
  const [reason, kernel] = row.kernel.split(" → ");
  return { status: "quantized", reason, kernel: kernel ?? "", detail: "", intended: true };
}

/** How a decision looks: only what was meant to run in low precision and does not is a loss. */
const verdict = (made) =>
  made.status === "quantized"
    ? { family: "byte", sign: "✓", words: "Runs in low precision" }
    : made.intended
      ? { family: "stop", sign: "✕", words: "Stays float, and was meant to run in low precision" }
      : { family: "float", sign: "–", words: "Stays float" };

const decisionChip = (row, key, moment) => {
  const made = decisionOf(key, row, moment);
  return (
    made && {
      text: made.reason,
      family: verdict(made).family,
      facet: `reason:${made.reason}`,
      sign: verdict(made).sign,
      title: `${made.status}: ${made.reason}${made.detail ? `\n${made.detail}` : ""}`,
    }
  );
};

/** The quantization parameters among the arguments of a node: name and text, in the order of the call. */
function parametersOf(row, moment) {
  if (row.op !== "call_function") return [];
  let next = 0;
  return row.args.flatMap((argument, i) => {
    const inputs = row.inputs.slice(next, next + argument.split(NODE).length - 1);
    next += inputs.length;
    const name = signatureName(row, i);
    if (!/scale|zero_point|quant_m|^axis$|^(out(put)?_)?dtype$/.test(name)) return [];
    const tensor = inputs.length === 1 ? moment.rows.get(inputs[0]) : null;
    const value = argument.replace(/^\w+=/, "");
    return [{ name, input: tensor ? inputs[0] : null, text: tensor ? tensor.value || tensor.name : value }];
  });
}

function scaleOf(key, row, moment) {
  const found = parametersOf(row, moment);
  const pick = (suffix) =>
    found.find(({ name }) => new RegExp(`^(out(put)?_)${suffix}$`).test(name)) ??
    found.find(({ name }) => new RegExp(`^${suffix}s?$`).test(name));
  const scale = pick("scale"),
    zero = pick("zero_point");
  if (scale) return { scale: scale.text, zero: zero?.text ?? "", own: true };
  const seen = observationOf.get(key);
  if (!seen?.parameters || found.length) return null;
  const range = ([low, high]) => (low === high ? short(low) : `${short(low)} … ${short(high)}`);
  return {
    scale: range(seen.parameters.scale),
    zero: range(seen.parameters.zero_point),
    own: seen.calls.includes(key),
  };
}

const scaleChip = (row, key, moment) => {
  const found = scaleOf(key, row, moment);
  if (!found) return null;
  const number = Number.isFinite(+found.scale) ? short(+found.scale) : found.scale;
  const zero = found.zero === "" || found.zero === "0" ? "" : ` @ ${found.zero}`;
  return {
    text: `${found.own ? "" : "→ "}${number}${zero}`,
    family: found.own ? "byte" : "plain",
    title: `scale ${found.scale}\nzero point ${found.zero || "0"}`,
  };
};

const histogramChip = (row, key) => {
  const seen = observationOf.get(key);
  if (!seen?.extremes.length) return null;
  const [low, high] = extremesOf(seen);
  return {
    text: `${short(low)} … ${short(high)}`,
    family: "plain",
    picture: seen,
    title: `${seen.kind}: ${short(low)} … ${short(high)}`,
  };
};

const extremesOf = (seen) => [
  Math.min(...seen.extremes.map(([low]) => low)),
  Math.max(...seen.extremes.map(([, high]) => high)),
];

const decibels = (error) =>
  error.sqnr === null ? (error.largest ? "no signal" : "exact") : `${error.sqnr.toFixed(1)} dB`;

const errorChip = (row, key) => {
  const error = errors?.get(key);
  if (!error) return null;
  const family = error.sqnr === null || error.sqnr >= 30 ? "byte" : error.sqnr >= 15 ? "wide" : "stop";
  const share = error.sqnr === null ? 1 : Math.max(0.02, Math.min(1, error.sqnr / 60));
  return {
    text: decibels(error),
    family,
    bar: share,
    title: `signal to quantization noise ${decibels(error)}, largest difference ${short(error.largest)}${error.own ? "\nof this quantization alone" : "\nagainst the float model"}`,
  };
};

const OVERLAYS = [
  { id: "none", label: "None", chip: () => null, note: "Choose what is shown beside each node." },
  { id: "dtype", label: "Dtype", chip: dtypeChip },
  { id: "sharing", label: "Sharing", chip: sharingChip },
  { id: "decision", label: "Decision", chip: decisionChip },
  {
    id: "scale",
    label: "Scale",
    chip: scaleChip,
    note: "Scale @ zero point. → is that of the observer behind a node.",
  },
  {
    id: "histogram",
    label: "Range",
    chip: histogramChip,
    note: "What observers saw: how values are distributed, or the range of each channel.",
  },
  ...(errors
    ? [
        {
          id: "error",
          label: "Error",
          chip: errorChip,
          note: "Signal to quantization noise, against the float model; 6 dB are one bit.",
        },
      ]
    : []),
];
