// What is known about one node.

function nodePanel(key, row, moment) {
  const gone = moment !== view.b,
    made = decisionOf(key, row, moment),
    seen = observationOf.get(key);
  return [
    heading(
      gone ? `not in the graph ${title(view.b).toLowerCase()}` : row.op.replace("_", " "),
      row.name,
      row.op === "call_function" ? shortOp(row.target) : row.op === "placeholder" ? "" : row.target,
    ),
    made
      ? section(
          "Decision",
          h(
            "p",
            { class: `verdict family ${verdict(made).family}` },
            h("span", { "aria-hidden": "true" }, `${verdict(made).sign} `),
            verdict(made).words,
          ),
          facts([
            [made.status === "quantized" ? "Pattern" : "Reason", code(made.reason)],
            ["Detail", made.detail],
            ["Kernel", made.kernel && code(made.kernel)],
          ]),
        )
      : null,
    section(
      "Where it comes from",
      facts([
        ["Made by", maker(row, key, moment)],
        ["Rule", row.kernel && code(row.kernel)],
        ["Made from", row.madeFrom >= 0 && lastSeen(row.madeFrom) ? nodeLink(row.madeFrom, moment) : null],
        [
          "Module",
          row.module && [code(row.module), " ", h("span", { class: "kind" }, kinds.get(row.module) ?? "")],
        ],
        ["Graph", row.body && code(row.body)],
        ["Source", sourceOf(row)],
      ]),
    ),
    section(
      "Value",
      facts([
        ["Type", row.type && code(row.type)],
        ["Elements", row.value],
        ["Sharing", sharing(key, row, moment)],
        ["Error", errorWords(key)],
        ...parametersOf(row, moment).map(({ name, input, text: words }) => [
          name.replaceAll("_", " "),
          input === null ? code(words) : [nodeLink(input, moment), ` ${words}`],
        ]),
      ]),
    ),
    seen ? section("Observer", observed(seen)) : null,
    row.specs.length
      ? section(
          "Annotation",
          h(
            "ul",
            { class: "plain" },
            row.specs.map(([of, spec]) =>
              h("li", {}, of >= 0 ? [nodeLink(of, moment), " "] : of === OUTPUT ? "output " : "", code(spec)),
            ),
          ),
        )
      : null,
    section("Arguments", argumentsOf(row, moment)),
    section("Read by", readers(key, moment)),
    section("History", timeline(key)),
  ].filter(Boolean);
}

function maker(row, key, moment) {
  if (!row.madeBy) return "the exported model";
  const event = historyOf(key).find(({ changes }) => changes.includes("added"));
  return event ? stopLink(event.moment, row.madeBy) : row.madeBy;
}

const stopLink = (moment, words) =>
  h(
    "button",
    { type: "button", class: "link", onclick: () => update({ at: moment.index, base: "previous" }) },
    words,
  );

function sourceOf(row) {
  const parts = /^(.*?):(\d+): (.*)$/s.exec(row.source);
  if (!parts) return row.source;
  return [
    h("span", { class: "file", title: parts[1] }, `${parts[1].split("/").slice(-2).join("/")}:${parts[2]}`),
    h("code", { class: "block" }, parts[3]),
  ];
}

function sharing(key, row, moment) {
  const groups = groupsOf(key, row);
  return groups.length
    ? groups.map(({ what, group }) => [
        h(
          "button",
          {
            type: "button",
            class: "link",
            title: "show all of this group",
            onclick: () => search(`group:g${group}`),
          },
          `group ${group}`,
        ),
        what ? ` (${what}) ` : " ",
      ])
    : null;
}

function errorWords(key) {
  const error = errors?.get(key);
  return (
    error &&
    `${decibels(error)} signal to noise, at most ${short(error.largest)} off${error.own ? ", by this quantization alone" : " the float model"}`
  );
}

function observed(seen) {
  const held = representable(seen),
    found = seen.parameters;
  const pair = (range) =>
    range[0] === range[1] ? short(range[0]) : `${short(range[0])} … ${short(range[1])}`;
  return [
    seen.extremes.length
      ? h(
          "figure",
          {},
          histogramPicture(seen),
          h(
            "figcaption",
            {},
            seen.histogram
              ? "Values seen, counts on a logarithmic scale. Shaded: what quantized values can represent."
              : held
                ? "Range of the values seen. Shaded: what quantized values can represent."
                : "Smallest to largest value of each channel.",
          ),
        )
      : h("p", {}, seen.has_data ? "It keeps no statistic." : "It has seen no data."),
    facts([
      ["Class", code(seen.kind)],
      [
        "Quantizes to",
        [
          code(seen.dtype),
          seen.integers ? ` [${seen.integers.join(", ")}]` : "",
          seen.scheme ? ` ${seen.scheme.replaceAll("_", " ")}` : "",
        ],
      ],
      ["Scale", found && pair(found.scale) + (found.count > 1 ? ` (${found.count} channels)` : "")],
      ["Zero point", found && pair(found.zero_point)],
      ["Saw", seen.extremes.length ? extremesOf(seen).map(short).join(" … ") : null],
    ]),
  ];
}

function argumentsOf(row, moment) {
  if (!row.args.length) return h("p", { class: "note" }, "none");
  let next = 0;
  return facts(
    row.args.map((argument, i) => {
      const pieces = argument.replace(/^\w+=/, "").split(NODE);
      const words = pieces.flatMap((piece, k) => [
        piece,
        k < pieces.length - 1 ? nodeLink(row.inputs[next], moment, nameAt(moment, row.inputs[next++])) : "",
      ]);
      return [signatureName(row, i) || `${i}`, h("span", { class: "mono" }, words)];
    }),
  );
}

function readers(key, moment) {
  const users = usersOf(moment).get(key) ?? [];
  return users.length
    ? h(
        "ul",
        { class: "plain" },
        users
          .slice(0, 40)
          .map((user) =>
            h(
              "li",
              {},
              nodeLink(user, moment),
              h("span", { class: "note" }, ` ${shortOp(moment.rows.get(user).target)}`),
            ),
          ),
        users.length > 40 ? h("li", {}, `and ${users.length - 40} more`) : null,
      )
    : h("p", { class: "note" }, "nothing");
}

const timeline = (key) =>
  h(
    "ol",
    { class: "timeline" },
    historyOf(key).map(({ moment, then, old, row, changes }) => {
      const [was, is] = [old && rowText(old, then), row && rowText(row, moment)];
      return h(
        "li",
        {
          class:
            changes[0] === "added" || changes[0] === "given"
              ? "added"
              : changes[0] === "removed"
                ? "removed"
                : "changed",
          "aria-current": moment === view.b ? "step" : null,
        },
        stopLink(moment, label(moment)),
        h("span", { class: "note" }, ` ${changes.join(", ")}`),
        was && was !== is ? h("code", { class: "block old" }, was) : null,
        is && was !== is ? h("code", { class: "block new" }, is) : null,
        row && !(old && equal(old.specs, row.specs))
          ? row.specs.map(([of, spec]) =>
              h(
                "code",
                { class: "block" },
                `${of >= 0 ? nameAt(moment, of) : of === OUTPUT ? "out" : ""}: ${spec}`,
              ),
            )
          : null,
      );
    }),
  );
