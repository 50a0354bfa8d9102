// The order in which nodes are shown, and the modules they are folded by.

/** Whether nodes depend on parameters and nothing else, so that they are shown with what reads them. */
function constantsOf(moment) {
  if (!moment.constants) {
    const bodies = new Set([...moment.rows.values()].map((row) => row.body));
    moment.constants = new Set();
    for (const key of moment.order) {
      const row = moment.rows.get(key);
      const reads = row.op === "get_attr" && !bodies.has(row.target);
      const computes =
        row.op.startsWith("call") &&
        row.inputs.length > 0 &&
        row.inputs.every((k) => moment.constants.has(k));
      if (!row.body && (reads || computes)) moment.constants.add(key);
    }
  }
  return moment.constants;
}

/** The nodes of a moment: in the order of the graph, but parameters just before their first reader. */
function arranged(moment) {
  if (!moment.arranged) {
    const constants = constantsOf(moment),
      done = new Set();
    moment.arranged = [];
    moment.paths = new Map();
    const place = (key, path) => {
      if (done.has(key)) return;
      done.add(key);
      for (const source of moment.rows.get(key).inputs) if (constants.has(source)) place(source, path);
      moment.arranged.push(key);
      moment.paths.set(key, path);
    };
    for (const key of moment.order) if (!constants.has(key)) place(key, pathOf(moment, key));
    for (const key of constants) place(key, parentOf(moment.rows.get(key)));
  }
  return moment.arranged;
}

const parentOf = (row) => (row.op === "get_attr" ? row.target.split(".").slice(0, -1).join(".") : row.module);

/** The module of a node; of one that does not say, that of its first neighbour that does. */
function pathOf(moment, key) {
  const row = moment.rows.get(key);
  if (row.body) return row.module ? `${row.body}.${row.module}` : row.body;
  if (row.module || !row.op.startsWith("call") || row.source) return row.module;
  const neighbours = [...(usersOf(moment).get(key) ?? []), ...row.inputs];
  return neighbours.map((k) => moment.rows.get(k)).find((near) => near?.module)?.module ?? "";
}

/** Items as a tree of modules: a module is a run of neighbours with one path, so it may occur twice. */
function outline(items, a, b) {
  const root = { path: "", label: "", children: [], items: [] };
  const open = [root],
    occurrences = new Map();
  for (const item of items) {
    const path = (item.b ? b : a).paths.get(item.key);
    const parts = path ? path.split(".") : [];
    let depth = 0;
    while (depth < parts.length && open[depth + 1]?.part === parts[depth]) depth++;
    open.length = depth + 1;
    for (; depth < parts.length; depth++) {
      const full = parts.slice(0, depth + 1).join(".");
      const nth = (occurrences.get(full) ?? 0) + 1;
      occurrences.set(full, nth);
      const group = {
        path: full,
        part: parts[depth],
        label: parts[depth],
        id: `${full}#${nth}`,
        children: [],
        items: [],
      };
      open.at(-1).children.push(group);
      open.push(group);
    }
    for (const group of open) group.items.push(item);
    open.at(-1).children.push(item);
  }
  return simplified(root);
}

/** Without modules that hold one node only, and chains of modules as one. */
function simplified(group) {
  group.children = group.children.map((child) => {
    if (!child.children) return child;
    if (child.items.length === 1) return child.items[0];
    let inner = child;
    while (inner.children.length === 1 && inner.children[0].children) {
      inner = { ...inner.children[0], label: `${inner.label}.${inner.children[0].label}` };
    }
    return simplified(inner);
  });
  return group;
}

/** The lines to show of an outline, given which modules are folded. */
function linesOf(root, isFolded) {
  const lines = [];
  const walk = (group, depth, parent) => {
    for (const child of group.children) {
      if (!child.children) lines.push({ item: child, depth, parent });
      else {
        const folded = isFolded(child, depth);
        const at = lines.push({ group: child, depth, parent, folded }) - 1;
        if (!folded) walk(child, depth + 1, at);
      }
    }
  };
  walk(root, 0, -1);
  return lines;
}
