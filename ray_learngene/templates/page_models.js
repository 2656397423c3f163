// The page's data: models, one per trained descendant, and groups of those that differ in seed or learning rate only.
const data = JSON.parse(document.getElementById("data").textContent);

const QUANTITIES = {
  __proto__: null,  // so that `in` finds these names alone
  params: { name: "parameters", units: { "": 1, k: 1e3, m: 1e6, g: 1e9 } },
  macs: { name: "MACs", units: { "": 1, k: 1e3, m: 1e6, g: 1e9 } },
  memory: { name: "memory", units: { b: 1, kb: 1e3, mb: 1e6, gb: 1e9, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30 } },
  latency: { name: "latency", units: { us: 1e-3, ms: 1, s: 1e3 } },
  seconds: { name: "total cost", units: { s: 1, min: 60, h: 3600, d: 86400 } },
  flops: { name: "total FLOPs", units: { "": 1, k: 1e3, m: 1e6, g: 1e9, t: 1e12, p: 1e15, e: 1e18, z: 1e21 } },
};
const SCORES = { __proto__: null, top1: "tuned", epoch1: "after one epoch", untuned: "untuned" };

function short(value) {
  return value >= 100 ? Math.round(value).toString() : Number(value.toPrecision(3)).toString();
}

// 39426 parameters as "39.4 k", 1.166 ms as "1.17 ms"
function amount(quantity, value) {
  if (value === null || value === undefined) return "–";
  if (quantity === "latency") return value >= 1000 ? `${short(value / 1000)} s` : `${short(value)} ms`;
  if (quantity === "seconds") {
    const [factor, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => value >= 2 * each || each === 1);
    return `${short(value / factor)} ${unit}`;
  }
  const unit = quantity === "memory" ? "B" : "";
  for (const [factor, prefix] of [[1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (value >= 0.9995 * factor) return `${short(value / factor)} ${prefix}${unit}`;
  return `${short(value)} ${unit}`.trim();
}

// "150k" in the units of a quantity; null: no such amount
function parsed(quantity, text) {
  const match = /^\s*(?:<=?|≤)?\s*(\d*\.?\d+(?:e[+-]?\d+)?)\s*([a-zµ]*)\s*$/i.exec(text);
  const factor = match && QUANTITIES[quantity].units[match[2].toLowerCase().replace("µ", "u") || Object.keys(QUANTITIES[quantity].units)[quantity === "latency" ? 1 : 0]];
  return factor && Number(match[1]) > 0 ? Number(match[1]) * factor : null;
}

function percent(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2);
}

function decode(table) {
  const read = Object.entries(table.columns).map(([name, column]) =>
    [name, Array.isArray(column) ? (row) => column[row] : (row) => column.distinct[column.index[row]]]);
  return Array.from({ length: table.rows }, (_, row) => Object.fromEntries(read.map(([name, get]) => [name, get(row)])));
}

function statistics(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.length) return null;
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  return { mean, low: Math.min(...known), high: Math.max(...known), count: known.length };
}

// Of a seed's learning rates the best counts; seeds are averaged.
function grouped(models) {
  const groups = new Map();
  models.forEach((model) => {
    const key = [model.sweep, model.arm, model.trained_for, model.size, model.image, model.params, model.macs].join("\u0000");
    if (!groups.has(key)) groups.set(key, { key, seeds: new Map(), tried: 0 });
    const group = groups.get(key), known = group.seeds.get(model.seed);
    group.tried += 1;
    if (!known || model.top1 > known.top1) group.seeds.set(model.seed, model);
  });
  return [...groups.values()].map(({ key, seeds, tried }) => {
    const members = [...seeds.values()].sort((one, other) => other.top1 - one.top1);
    const first = members[0], scores = {}, costs = {};
    for (const name of Object.keys(SCORES)) scores[name] = statistics(members.map((model) => model[name]));
    for (const name of ["params", "macs", "memory", "seconds", "flops"])
      costs[name] = statistics(members.map((model) => model[name]))?.mean ?? null;
    const latency = data.devices.map((_, device) => statistics(members.map((model) => model[`latency${device}`]))?.mean ?? null);
    const error = data.devices.map((_, device) => first[`error${device}`] ?? 0);  // of predictions, relative
    return { key, members, tried, scores, costs, latency, error, ...pick(first, ["sweep", "arm", "size", "image", "set", "outside"]) };
  });
}

function pick(source, names) {
  return Object.fromEntries(names.map((name) => [name, source[name]]));
}

// Those that no other beats in both: in the order of cost, each more accurate than all before it.
function paretoFront(groups, cost, score) {
  const ordered = [...groups].sort((one, other) => cost(one) - cost(other) || score(other) - score(one));
  let best = -Infinity;
  return ordered.filter((group) => score(group) > best && ((best = score(group)), true));
}

const MODELS = decode(data.models);
const GROUPS = grouped(MODELS);
