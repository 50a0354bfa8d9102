// Search: words that must all be there, and `field:word` for words in one place.

const FIELDS = {
  op: ({ row }) => row.target,
  name: ({ row }) => row.name,
  module: ({ row }) => row.module,
  source: ({ row }) => row.source,
  dtype: ({ row }) => dtypeOf(row),
  kernel: ({ row, made }) => `${row.kernel} ${made?.kernel ?? ""}`,
  status: ({ made }) => made?.status ?? "",
  reason: ({ made }) => made?.reason ?? "",
  group: ({ row, key }) =>
    groupsOf(key, row)
      .map(({ group }) => `g${group}`)
      .join(" "),
  pass: ({ row }) => row.madeBy,
  change: ({ item }) => [item.state, ...item.aspects].join(" "),
};
const WHOLE = new Set(["dtype", "group", "status", "reason"]); // dtype:i8 is not dtype:i80, group:g1 is not group:g12

/** A test of items for a query; null if it asks for nothing. */
function parseQuery(query, moment) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return null;
  const tests = words.map((word) => {
    const [field, rest] = word.split(/:(.*)/s);
    if (rest === undefined || !(field in FIELDS)) return (about) => about.all.includes(word);
    const read = FIELDS[field];
    return WHOLE.has(field) && rest
      ? (about) => read(about).toLowerCase().split(" ").includes(rest)
      : (about) => read(about).toLowerCase().includes(rest);
  });
  return (item) => {
    const row = item.b ?? item.a,
      made = decisionOf(item.key, row, moment);
    const all = [row.name, row.target, row.module, row.type, row.kernel, made?.reason ?? ""]
      .join(" ")
      .toLowerCase();
    return tests.every((test) => test({ item, row, key: item.key, made, all }));
  };
}
