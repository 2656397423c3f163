// What the user chose, in the page's address; the controls; the chosen model; the table.
const $ = (id) => document.getElementById(id);
const SWEEPS = Object.keys(data.sweeps);
const PAGE_ROWS = 100;
const TOTAL_COST = "Total cost: training, and a share of the learngene and of its ancestry model if that was trained in this store; undivided: all of them.";
const DEFAULTS = { x: "params", y: "top1", zoom: "auto", colour: null, panels: "", scale: "log", set: 0, device: 0, off: [], without: [],
  budgets: {}, model: null, before: null, table: "front", sort: "", lines: PAGE_ROWS, get: "command", follow: true };
let state, marks = [], shown = [], within = [], front = [], chosen = null;

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

// ---- state and address

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS, budgets: {} };
  for (const [name, value] of given) {
    if (name in QUANTITIES) {
      const limit = parsed(name, value);
      if (limit !== null) state.budgets[name] = limit;
    } else if (["off", "without"].includes(name)) state[name] = given.getAll(name);
    else if (["set", "device"].includes(name)) state[name] = Number(value) || 0;
    else if (["before", "follow"].includes(name)) state[name] = value !== "0";
    else if (["x", "y", "zoom", "colour", "panels", "scale", "model", "table", "sort", "get"].includes(name)) state[name] = value;
  }
  if (!(state.x in QUANTITIES)) state.x = "params";
  if (!(state.y in SCORES)) state.y = "top1";
  if (!data.devices[state.device]) state.device = 0;
  if (!data.sets[state.set]) state.set = 0;
}

function writeAddress() {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "budgets") for (const [quantity, limit] of Object.entries(value)) words.set(quantity, limit + unitOf(quantity));
    else if (Array.isArray(value)) value.forEach((each) => words.append(name, each));
    else if (name !== "lines" && value !== DEFAULTS[name] && value !== null) words.set(name, typeof value === "boolean" ? Number(value) : value);
  }
  try {
    history.replaceState(null, "", `#${words}`);
  } catch {
    // where a page may not, as in a sandboxed frame, it works without an address
  }
}

function unitOf(quantity) {
  return { latency: "ms", memory: "B", seconds: "s" }[quantity] ?? "";
}

function change(values) {
  Object.assign(state, values);
  update();
}

// ---- what is shown

function costOf(group, quantity) {
  return quantity === "latency" ? group.latency[state.device] ?? null : group.costs[quantity];
}

function admits(group) {
  return Object.entries(state.budgets).every(([quantity, limit]) => {
    const cost = costOf(group, quantity);
    return cost !== null && cost <= limit;
  });
}

function limited() {
  return Object.keys(state.budgets).length > 0;
}

function ofSet() {
  return GROUPS.filter((group) => group.set === state.set);
}

function styleNames() {
  const by = state.colour ?? (namesOf("arm").length > 1 || namesOf("sweep").length < 2 ? "arm" : "sweep");
  return { by, names: namesOf(by) };
}

// Marks of untuned models are shown unless they would be too many, or the user says so.
function showsBefore() {
  return state.y !== "untuned" && (state.before ?? shown.length <= 40);
}

function namesOf(name) {
  return [...new Set(ofSet().map((group) => group[name]))].sort();
}

function styleAt(index) {
  return { color: index % 8, shape: (index + Math.floor(index / 8)) % 8 };
}

function domain(values, log, pad) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) return low === high ? [low / 1.5, high * 1.5] : [low, high];
  if (low === high) [low, high] = [low - 1, high + 1];
  return [low - pad * (high - low), high + pad * (high - low)];
}

// The lowest accuracy above a gap that takes half of the axis: bad arms and untuned models below would squeeze all others.
function aboveGap(scores, lowest) {
  const sorted = [...scores].sort((one, other) => one - other), range = sorted.at(-1) - sorted[0];
  let gap = Math.max(5, range / 2), above = -Infinity;
  for (let index = 1; index < sorted.length && sorted[index] <= lowest; index += 1)
    if (sorted[index] - sorted[index - 1] > gap) [gap, above] = [sorted[index] - sorted[index - 1], sorted[index]];
  return shown.filter((group) => group.scores[state.y].mean >= above).length >= 3 ? above : -Infinity;
}

// Accuracies to show: Tukey's fence leaves out single bad arms, "front" all but the neighbourhood of the best.
function scoreDomain(lines) {
  const ends = shown.flatMap((group) => {
    const score = group.scores[state.y], before = showsBefore() ? group.scores.untuned : null;
    return before ? [score.low, score.high, before.mean] : [score.low, score.high];
  });
  const means = shown.map((group) => group.scores[state.y].mean).sort((one, other) => one - other);
  const high = Math.max(...ends, ...lines);
  let low = Math.min(...ends, ...lines);
  if (state.zoom === "front" && front.length) {
    const scores = front.map((group) => group.scores[state.y].mean);
    low = Math.max(low, Math.min(...scores) - Math.max(1, 0.6 * (high - Math.min(...scores))));
  } else if (state.zoom === "auto") {
    const best = front.map((group) => group.scores[state.y].mean);
    const quarter = means[Math.floor(means.length / 4)], three = means[Math.floor((3 * means.length) / 4)];
    if (means.length >= 8) low = Math.max(low, Math.min(quarter - 1.5 * Math.max(three - quarter, 2), ...best.map((mean) => mean - 1)));
    low = Math.max(low, aboveGap(ends, Math.min(...best)));
  }
  const pad = 0.04 * (high - low) || 1;
  return [Math.max(0, low - pad), Math.min(100.5, high + pad)];
}

function compute() {
  const cost = (group) => costOf(group, state.x), score = (group) => group.scores[state.y].mean;
  shown = ofSet().filter((group) => !state.off.includes(group.arm) && !state.without.includes(group.sweep) && group.scores[state.y]);
  within = shown.filter(admits);
  front = paretoFront(within.filter((group) => cost(group) !== null), cost, score);
  const inside = within.filter((group) => !group.outside);  // as `pull` does: untrained sizes only where nothing else is
  const best = (inside.length ? inside : within).reduce((one, other) => (!one || score(other) > score(one)
    || (score(other) === score(one) && other.costs.params < one.costs.params) ? other : one), null);
  chosen = shown.find((group) => group.members.some((model) => idOf(model) === state.model)) ?? best;
}

function idOf(model) {
  return `${model.sweep}/${model.name}`;
}

function ancestries() {
  return data.ancestries.filter((one) => one.set === state.set).map((one) => ({ value: one.top1, text: `ancestry model ${one.name}, ${percent(one.top1)} %` }));
}

// A line far from all models is named below the chart: there it would squeeze them.
function near(lines) {
  const scores = shown.map((group) => group.scores[state.y].mean);
  const low = Math.min(...scores), high = Math.max(...scores), reach = Math.max(5, high - low);
  return lines.filter((line) => line.value >= low - reach / 4 && line.value <= high + reach);
}

// Ticks are whole numbers of the largest unit that most costs exceed.
function timeUnit(values) {
  const middle = [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];
  return [86400, 3600, 60].find((unit) => middle >= 2 * unit) ?? 1;
}

function view() {
  const { by, names } = styleNames(), log = state.scale === "log";
  const plotted = shown.filter((group) => costOf(group, state.x) > 0);
  const lines = near(ancestries());
  const sweeps = state.panels === "sweep" ? namesOf("sweep").filter((name) => plotted.some((group) => group.sweep === name)) : [];
  return {
    chosen, lines, admits,
    panels: sweeps.length > 1 ? sweeps.map((name) => ({ title: name, groups: plotted.filter((group) => group.sweep === name) })) : [{ title: "", groups: plotted }],
    x: { cost: (group) => costOf(group, state.x), log, domain: plotted.length ? domain(plotted.map((group) => costOf(group, state.x)), log, 0.03) : [1, 10],
      format: (value) => amount(state.x, value), unit: state.x === "seconds" ? timeUnit(plotted.map((group) => costOf(group, state.x))) : 1, limit: state.budgets[state.x] ?? null,
      label: state.x === "latency" ? `latency on ${data.devices[state.device]}` : QUANTITIES[state.x].name },
    y: { score: (group) => group.scores[state.y], domain: plotted.length ? scoreDomain(lines.map((line) => line.value)) : [0, 100],
      label: "top-1 %, mean over seeds (bar: lowest to highest)" },
    before: showsBefore() ? (group) => group.scores.untuned : null,
    style: (group) => styleAt(names.indexOf(group[by])),
  };
}

// ---- controls

function choice(label, options, value, onchange) {
  const select = h("select", { onchange: () => onchange(select.value) }, ...options.map(([key, text]) => h("option", { value: key, selected: String(key) === String(value) }, text)));
  return h("label", {}, h("span", {}, label), select);
}

function checkbox(label, checked, onchange) {
  const box = h("input", { type: "checkbox", checked, onchange: () => onchange(box.checked) });
  return h("label", { className: "check" }, box, label);
}

// A part of the page is made again only if what it shows has changed, so that focus stays where it is.
function remake(id, key, make) {
  const host = $(id), text = JSON.stringify(key);
  if (host.dataset.key === text) return;
  const position = [...host.querySelectorAll("select, input, button")].indexOf(document.activeElement);
  host.dataset.key = text;
  host.replaceChildren(...make().filter(Boolean));
  if (position >= 0) host.querySelectorAll("select, input, button")[position]?.focus();
}

function makeAxes() {
  const quantities = Object.keys(QUANTITIES).filter((name) => ofSet().some((group) => costOf(group, name) > 0));
  const several = namesOf("sweep").length > 1;
  remake("axes", [state.x, state.y, state.zoom, state.scale, state.colour, state.panels, showsBefore(), state.device, state.set], () => [
    choice("Accuracy", Object.entries(SCORES), state.y, (y) => change({ y })),
    choice("against", quantities.map((name) => [name, QUANTITIES[name].name]), state.x, (x) => change({ x })),
    data.devices.length > 1 ? choice("latency on", data.devices.map((name, index) => [index, name]), state.device, (value) => change({ device: Number(value), budgets: without(state.budgets, "latency") })) : null,
    choice("range", [["auto", "without outliers"], ["front", "near the front"], ["all", "everything"]], state.zoom, (zoom) => change({ zoom })),
    several ? choice("colours", [["arm", "by arm"], ["sweep", "by sweep"]], styleNames().by, (colour) => change({ colour })) : null,
    several ? choice("sweeps", [["", "in one chart"], ["sweep", "side by side"]], state.panels, (panels) => change({ panels })) : null,
    h("span", { className: "checks" }, checkbox("logarithmic", state.scale === "log", (on) => change({ scale: on ? "log" : "linear" })),
      state.y === "untuned" ? null : checkbox("untuned too", showsBefore(), (before) => change({ before }))),
  ]);
}

function without(object, name) {
  return Object.fromEntries(Object.entries(object).filter(([key]) => key !== name));
}

function toggles(names, off, by, apply) {
  const styled = styleNames();
  const chips = names.map((name) => h("button", { type: "button", "aria-pressed": String(!off.includes(name)),
    onclick: () => apply(off.includes(name) ? off.filter((each) => each !== name) : [...off, name]) },
  ...(styled.by === by ? [swatch(styleAt(styled.names.indexOf(name)))] : []), name));
  if (names.length > 3) chips.push(h("button", { type: "button", className: "plain", onclick: () => apply(off.length ? [] : names) }, off.length ? "all" : "none"));
  return chips;
}

function makeToggles() {
  const arms = namesOf("arm"), sweeps = namesOf("sweep"), { by } = styleNames();
  remake("legend", [arms, state.off, by], () => toggles(arms, state.off, "arm", (off) => change({ off, model: null })));
  remake("sweeps", [sweeps, state.without, by], () => sweeps.length < 2 ? [] : [h("h2", {}, "Sweeps"),
    h("div", { className: "chips", role: "group", "aria-label": "Sweeps" }, ...toggles(sweeps, state.without, "sweep", (without) => change({ without, model: null })))]);
  remake("images", [data.sets, state.set], () => data.sets.length < 2 ? [] : [h("label", { className: "field" }, h("span", {}, "Images and classes"),
    choice("", data.sets.map((name, index) => [index, name]), state.set, (set) => change({ set: Number(set), off: [], without: [], budgets: {}, model: null })).lastChild)]);
  const presets = [...new Set(sweeps.flatMap((name) => data.sweeps[name]?.budgets ?? []))].filter(budgetOf);
  remake("presets", presets, () => presets.map((text) => h("button", { type: "button", onclick: () => change(budgetOf(text)) }, text)));
}

// "macs<=500M,latency@pi<=8ms" as limits, and the device of the latency; null where the page does not know all of it
function budgetOf(text) {
  const chosen = { budgets: {}, model: null };
  for (const part of text.split(",")) {
    const [name, limit = ""] = part.split(/<=?/), [quantity, device] = name.trim().split("@");
    const value = quantity in QUANTITIES ? parsed(quantity, limit) : null;
    const devices = [...data.devices.keys()].filter((each) => data.devices[each].startsWith(`${device},`));
    if (value === null || (device && devices.length !== 1)) return null;
    chosen.budgets[quantity] = value;
    if (device) [chosen.device] = devices;
  }
  return chosen;
}

function makeBudgets() {
  const groups = ofSet();
  const steps = Object.keys(QUANTITIES).filter((name) => name !== "flops").map((name) => [name, [...new Set(groups.map((group) => costOf(group, name)).filter((cost) => cost > 0))].sort((one, other) => one - other)])
    .filter(([, values]) => values.length > 1);
  remake("budgets", [state.set, state.device, steps.map(([name]) => name)], () => steps.map(([name, values]) => budget(name, values)));
  for (const [name] of steps) $(`budget-${name}`).show();
  $("budgets-title").hidden = $("reset").hidden = !steps.length;
  $("reset").disabled = !limited();
  $("filters").hidden = !steps.length && data.sets.length < 2 && namesOf("sweep").length < 2;
}

function budget(name, values) {
  const title = `${QUANTITIES[name].name} at most`;
  const set = (limit) => change({ budgets: limit === null ? without(state.budgets, name) : { ...state.budgets, [name]: limit }, model: null });
  const slider = h("input", { type: "range", min: 0, max: values.length - 1, step: 1, "aria-label": title,
    oninput: () => set(Number(slider.value) === values.length - 1 ? null : values[slider.value]) });
  const text = h("input", { type: "text", "aria-label": `${title}, as text`, placeholder: "any", autocomplete: "off",
    onchange: () => {
      const limit = text.value.trim() ? parsed(name, text.value) : null;
      const wrong = limit === null && Boolean(text.value.trim());
      text.setAttribute("aria-invalid", String(wrong));
      if (!wrong) set(limit);
    } });
  const row = h("div", { className: "budget", id: `budget-${name}` }, h("span", {}, title), text, slider);
  row.show = () => {
    const limit = state.budgets[name] ?? null;
    const reached = values.filter((value) => limit === null || value <= limit).length - 1;
    slider.value = Math.max(0, reached);
    slider.setAttribute("aria-valuetext", limit === null ? "any" : amount(name, limit));
    if (document.activeElement !== text || text.getAttribute("aria-invalid") !== "true") {
      text.value = limit === null ? "" : amount(name, limit);
      text.setAttribute("aria-invalid", "false");
    }
  };
  return row;
}

// ---- the chosen model

function predicted(group) {
  const error = group.error[state.device];
  return error ? `, predicted (± ${short(100 * error)} %)` : "";
}

function nameOf(group) {
  return `${group.arm} ${group.size}`;
}

function storeUri() {
  if (data.store) return data.store;
  if (location.protocol !== "file:" || data.root === null) return "STORE";
  return decodeURIComponent(new URL(data.root || ".", location.href).pathname).replace(/\/$/, "") || "STORE";
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// What the budgets would have to allow at least.
function least() {
  const costs = Object.keys(state.budgets).map((name) => [name, Math.min(...shown.map((group) => costOf(group, name) ?? Infinity))]);
  return `The least is ${costs.map(([name, cost]) => (cost === Infinity ? `no known ${QUANTITIES[name].name}` : `${amount(name, cost)} ${QUANTITIES[name].name}`)).join(", ")}.`;
}

function makeModel() {
  const host = $("model");
  if (!chosen) {
    host.replaceChildren(h("p", {}, !shown.length ? "No arm is switched on." : `No model is within the budgets. ${least()}`));
    delete host.dataset.key;
    return;
  }
  const model = chosen.members.find((each) => idOf(each) === state.model) ?? chosen.members[0];
  const { by, names } = styleNames(), style = styleAt(names.indexOf(chosen[by]));
  remake("model", [idOf(model), state.y, state.get, state.device, style, admits(chosen)], () => {
    const score = chosen.scores[state.y], untuned = chosen.scores.untuned, path = `descendants/${idOf(model)}`;
    const facts = [
      ["untuned", untuned && state.y !== "untuned" ? `${percent(untuned.mean)} %` : null],
      ...["params", "macs", "memory", "latency"].map((name) => [QUANTITIES[name].name, costOf(chosen, name) === null ? null : `${amount(name, costOf(chosen, name))}${name === "latency" ? predicted(chosen) : ""}`]),
      ["total cost", chosen.costs.seconds === null ? null : `${amount("seconds", chosen.costs.seconds)}, ${amount("flops", chosen.costs.flops)}FLOPs`],
      ["of it, tuning", model.own ? amount("seconds", model.own) : null],
      ["undivided", model.undivided_seconds ? `${amount("seconds", model.undivided_seconds)}, ${amount("flops", model.undivided_flops)}FLOPs` : null],
      ["trained for", model.trained_for],
      ["images", model.images],
      ["input", chosen.image],
      ["learngene", model.learngene ? `${model.learngene}${model.version ? ` (${model.version})` : ""}` : null],
      ["learning rate", chosen.tried > chosen.members.length ? `${short(model.lr)}, best of ${Math.round(chosen.tried / chosen.members.length)}` : short(model.lr)],
      ["sweep", SWEEPS.length > 1 ? model.sweep : null],
    ];
    const spread = score.count > 1 ? `mean of ${plural(score.count, "seed")}: ${percent(score.low)} to ${percent(score.high)}` : "one seed";
    return [
      h("div", { className: "who" }, swatch(style), h("h2", { className: "name" }, nameOf(chosen))),
      h("p", { className: "score" }, `${percent(score.mean)} %`),
      h("p", { className: "dim small" }, `${SCORES[state.y] === "tuned" ? "" : `${SCORES[state.y]}, `}${spread}`),
      admits(chosen) ? null : h("p", { className: "note" }, "This model exceeds a budget."),
      chosen.outside ? h("p", { className: "note" }, `Note: ${chosen.outside}.`) : null,
      h("dl", {}, ...facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      chosen.members.length > 1 ? choice("Seed", chosen.members.map((each) => [idOf(each), `${each.seed}: ${percent(each[state.y])} %`]), idOf(model), (id) => change({ model: id })) : null,
      ...exportsOf(model),
      getIt(path),
      links(model, path),
    ];
  });
}

function exportsOf(model) {
  if (!model.exports) return [];
  const formats = model.exports.split(",");
  return [h("p", { className: "small" }, h("strong", {}, "Exports: "), `${formats.join(", ")}; pull --format takes one`)];
}

function getIt(path) {
  const uri = storeUri();
  const texts = {
    command: `learngene pull ${quoted(path)} --store ${quoted(uri)}`,
    python: `import ray_learngene as lg\n\nmodel, transform = lg.pull(${JSON.stringify(uri)}, ${JSON.stringify(path)}).load()`,
  };
  const text = state.get === "python" ? texts.python : texts.command;
  const code = h("code", {}, text), done = h("span", { className: "dim small", role: "status" });
  const copy = h("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      done.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      done.textContent = "selected: press Ctrl-C";
    }
  } }, "Copy");
  return h("div", { className: "get" },
    h("div", { className: "bar" }, choice("Get it by", [["command", "command line"], ["python", "Python"]], state.get, (get) => change({ get }))),
    h("pre", {}, code), copy, " ", done);
}

function links(model, path) {
  if (data.root === null || !model.folder) return null;
  const folder = `${data.root}${path.split("/").map(encodeURIComponent).join("/")}/${encodeURIComponent(model.folder)}/`;
  return h("p", { className: "small" }, h("a", { href: `${folder}README.md` }, "model card"), " · ", h("a", { href: `${folder}metrics.json` }, "all metrics"));
}

// ---- the table

function columns() {
  const numbers = (name) => [QUANTITIES[name].name, (group) => costOf(group, name), (group) => amount(name, costOf(group, name))];
  return [
    ["model", null, null],
    ["top-1 %", (group) => group.scores[state.y].mean, (group) => percent(group.scores[state.y].mean)],
    ...(state.y === "untuned" ? [] : [["untuned", (group) => group.scores.untuned?.mean, (group) => percent(group.scores.untuned?.mean)]]),
    ...["params", "macs", "latency", "seconds"].filter((name) => within.some((group) => costOf(group, name) !== null)).map(numbers),
  ];
}

function makeTable() {
  remake("which", [state.table, front.length, within.map((group) => Boolean(group.outside)), state.x, limited()], () => [
    choice("Show", [["front", `the Pareto front (${front.length.toLocaleString("en")})`], ["all", `${limited() ? "all within the budgets" : "all models"} (${within.length.toLocaleString("en")})`]], state.table, (table) => change({ table, lines: PAGE_ROWS })),
    h("span", { className: "dim small" }, state.table === "front" ? `none is both cheaper in ${QUANTITIES[state.x].name} and more accurate` : ""),
    within.some((group) => group.outside) ? h("span", { className: "dim small" }, "* a size that the learngene was not trained for") : null,
  ]);
  const kinds = columns(), [sorted, direction] = (state.sort || "top-1 %:down").split(":");
  const by = kinds.find(([name]) => name === sorted)?.[1] ?? kinds[1][1], sign = direction === "up" ? 1 : -1;
  const rows = [...(state.table === "front" ? front : within)].sort((one, other) => sign * ((by(one) ?? -1) - (by(other) ?? -1)));
  const visible = rows.slice(0, state.lines);
  $("more").hidden = rows.length <= state.lines;
  $("list").hidden = !rows.length;
  const { by: coloured, names } = styleNames();
  remake("table", [visible.map((group) => group.key), state.sort, state.y, state.device, coloured, names, chosen?.key], () => [
    h("thead", {}, h("tr", {}, ...kinds.map(([name, value]) => h("th", { scope: "col", ...(value && name === sorted ? { "aria-sort": sign > 0 ? "ascending" : "descending" } : {}) },
      value ? h("button", { type: "button", onclick: () => change({ sort: `${name}:${name === sorted && sign < 0 ? "up" : "down"}` }) }, `${name}${name === sorted ? (sign > 0 ? " ↑" : " ↓") : ""}`) : name)))),
    h("tbody", {}, ...visible.map((group) => h("tr", { onclick: () => pickGroup(group), ...(group === chosen ? { "aria-current": "true" } : {}) },
      h("td", {}, h("button", { type: "button" }, swatch(styleAt(names.indexOf(group[coloured]))), `${nameOf(group)}${namesOf("sweep").length > 1 ? `, ${group.sweep}` : ""}${group.outside ? " *" : ""}`)),
      ...kinds.slice(1).map(([, , show]) => h("td", {}, show(group)))))),
  ]);
}

function pickGroup(group) {
  change({ model: idOf(group.members[0]) });
}

// ---- the chart's keyboard and pointer

function describe(group) {
  return `${nameOf(group)}, ${percent(group.scores[state.y].mean)} %, ${amount(state.x, costOf(group, state.x))}${state.x === "params" ? " parameters" : ""}`;
}

function ordered() {
  return [...marks].sort((one, other) => costOf(one.group, state.x) - costOf(other.group, state.x) || one.group.scores[state.y].mean - other.group.scores[state.y].mean).map((mark) => mark.group);
}

function nearest(event) {
  const box = $("chart").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = null, least = 28 ** 2;
  for (const mark of marks) {
    const distance = (mark.x - x) ** 2 + (mark.y - y) ** 2;
    if (distance < least) [best, least] = [mark, distance];
  }
  return best;
}

function showTip(mark) {
  const tip = $("tip"), chart = $("chart");
  tip.hidden = !mark;
  chart.querySelector(".hover")?.remove();
  if (!mark) return;
  const score = mark.group.scores[state.y];
  chart.querySelector("svg").append(svg("circle", { cx: mark.x, cy: mark.y, r: 9, class: "hover" }));
  tip.replaceChildren(h("strong", {}, nameOf(mark.group)), ...(SWEEPS.length > 1 ? [h("div", { className: "dim" }, mark.group.sweep)] : []),
    h("div", {}, `${percent(score.mean)} %${score.count > 1 ? ` (${percent(score.low)} to ${percent(score.high)})` : ""}`), h("div", {}, `${amount(state.x, costOf(mark.group, state.x))}${state.x === "params" ? " parameters" : ""}`));
  const left = chart.offsetLeft + mark.x + 14, width = tip.offsetWidth;
  tip.style.left = `${left + width > chart.offsetLeft + chart.clientWidth ? left - width - 28 : left}px`;
  tip.style.top = `${chart.offsetTop + mark.y + 10}px`;
}

function onKey(event) {
  const order = ordered(), at = order.indexOf(chosen);
  const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: order.length - 1, PageUp: at + 10, PageDown: at - 10 }[event.key];
  if (to === undefined || !order.length) return;
  event.preventDefault();
  pickGroup(order[Math.min(order.length - 1, Math.max(0, to))]);
}

// What the lines and the hollow marks of the chart are.
function keys() {
  return [
    front.length ? ["front", "Pareto front: nothing is both cheaper and more accurate"] : null,
    showsBefore() && shown.some((group) => group.scores.untuned) ? ["before", "before tuning"] : null,
    near(ancestries()).length ? ["ancestry", "ancestry model"] : null,
  ].filter(Boolean);
}

function keyMark(kind) {
  const picture = svg("svg", { width: 22, height: 12, viewBox: "0 0 22 12", "aria-hidden": "true" });
  picture.append(kind === "before" ? svg("path", { d: SHAPES[0](11, 6, 4), class: "before" }) : svg("path", { d: "M1 6H21", class: kind }));
  return picture;
}

function drawFigure() {
  marks = drawChart($("chart"), view());
  showTip(null);
  const order = ordered(), at = order.indexOf(chosen), chart = $("chart");
  chart.setAttribute("aria-valuemin", Math.min(1, order.length));
  chart.setAttribute("aria-valuemax", order.length);
  chart.setAttribute("aria-valuenow", at + 1);
  chart.setAttribute("aria-valuetext", at >= 0 ? describe(chosen) : "no model");
  const cut = marks.filter((mark) => mark.cut).map((mark) => mark.group.scores[state.y].mean), missing = shown.length - marks.length;
  const far = shown.length ? ancestries().filter((line) => !near([line]).length) : [];
  $("key").replaceChildren(...keys().map(([kind, text]) => h("span", {}, keyMark(kind), text)));
  $("cut").textContent = [cut.length ? `▾ ${plural(cut.length, "model")} below the chart, ${percent(Math.min(...cut))} to ${percent(Math.max(...cut))} %. The range “everything” shows them.` : "", missing ? `${plural(missing, "model")} without this measurement.` : "",
    ...far.map((line) => `Not on the chart: ${line.text}.`)].join(" ").trim();
}

// ---- what is around

function makeSurroundings() {
  const running = Object.values(data.sweeps).map((sweep) => sweep.running).find(Boolean);
  const name = SWEEPS.length === 1 ? `of sweep ${SWEEPS[0]}` : `of ${plural(SWEEPS.length, "sweep")}`;
  $("source").textContent = `${name}${data.store ? ` in ${data.store}` : ""}`;
  const written = new Date(data.written), minutes = Math.floor((Date.now() - written) / 60000);
  $("written").textContent = `Written ${written.toLocaleString()} by ray_learngene ${data.by}. Accuracy is top-1 on the validation split. ${TOTAL_COST}`;
  if (running) {
    $("running").hidden = false;
    $("progress").textContent = `${running.done} of ${plural(running.total, "descendant")} done.${60 * minutes >= running.late ? ` Nothing was written for ${plural(minutes, "minute")}: the sweep may have stopped. Run it again to go on; learngene page shows all that is published.` : ""}`;
    $("now").replaceChildren(...running.now.map((one) => h("li", {}, h("span", {}, `${one.arm} ${one.size}, seed ${one.seed}`),
      h("progress", { max: one.epochs || 1, value: one.epoch, "aria-label": `epochs of ${one.arm} ${one.size}, seed ${one.seed}` }), h("span", { className: "dim" }, `epoch ${short(one.epoch)} of ${one.epochs}${one.top1 === null ? "" : `, top-1 ${percent(one.top1)} %`}`))));
    $("follow").checked = state.follow;
    $("follow").addEventListener("change", () => change({ follow: $("follow").checked }));
  }
  const unfinished = SWEEPS.flatMap((sweep) => data.sweeps[sweep].unfinished ?? []);
  if (unfinished.length) {
    $("unfinished").hidden = false;
    $("unfinished").replaceChildren(h("h2", { id: "unfinished-title" }, `Not finished (${unfinished.length.toLocaleString("en")})`),
      h("ul", {}, ...unfinished.slice(0, PAGE_ROWS).map((one) => h("li", {}, `${one.arm} ${one.size}, seed ${one.seed}, learning rate ${short(one.lr)}: ${one.status}${one.error ? ` (${one.error})` : ""}`))));
  }
}

// What a sweep was to cost, as `plan --calibrate` measured, and what it has cost.
function makeCosts() {
  const planned = SWEEPS.filter((name) => data.sweeps[name].planned);
  $("costs").hidden = !planned.length;
  $("costs").replaceChildren(h("h2", { id: "costs-title" }, "Planned and spent"), ...planned.map(costsOf));
}

function more(spent, planned) {
  return spent && planned ? `${spent >= planned ? "+" : "−"}${Math.abs(100 * (spent / planned - 1)).toFixed(1)} %` : "–";
}

function costsOf(name) {
  const plan = data.sweeps[name].planned, known = (value, text) => (value === null ? "–" : text(value));
  const seconds = (value) => known(value, (some) => amount("seconds", some));
  const line = (what, one, trained) => [what, trained, seconds(one.seconds), seconds(one.spent), more(one.spent, one.seconds), known(one.load, short)];
  const rows = plan.models.map((one) => line(`${one.arm} ${one.size}`, one, `${one.trained} of ${one.count}`));
  if (plan.distillation) rows.unshift(line("distillation", plan.distillation, plan.distillation.spent ? "yes" : "no"));
  const sum = (of) => plan.models.reduce((total, one) => total + of(one), 0), all = sum((one) => one.count * one.seconds);
  const due = sum((one) => one.trained * one.seconds), spent = sum((one) => one.trained * (one.spent ?? 0));
  const difference = spent ? ` on tuning, ${more(spent, due)} for what is trained` : " on tuning";
  const price = plan.price === null ? "" : ` The plan's price was ${short(plan.price)}; what was spent is ${short(plan.price_spent)}.`;
  const unit = plan.unit ? `Seconds are ${plan.unit} seconds.` : "Seconds are those by the clock: other work on a machine adds to them.";
  return h("div", {},
    h("p", { className: "small" }, `${SWEEPS.length > 1 ? `${name}: ` : ""}${amount("seconds", all)} planned, ${amount("seconds", spent)} spent${difference}.${price}`),
    h("p", { className: "dim small" }, `Planned by steps measured on ${plan.device}, at a load of ${short(plan.load ?? 0)}. ${unit}`),
    h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Planned and spent, ${name}` }, h("table", {},
      h("thead", {}, h("tr", {}, ...["model", "trained", "planned each", "spent each", "difference", "load"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...rows.slice(0, PAGE_ROWS).map((cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, cell))))))));
}

// A running sweep's page is loaded again while it is not being used.
function follow() {
  let touched = Date.now();
  for (const kind of ["pointerdown", "pointermove", "keydown", "scroll"]) addEventListener(kind, () => (touched = Date.now()), { passive: true });
  setInterval(() => {
    if (state.follow && !document.hidden && Date.now() - touched > 10000) location.reload();
  }, 30000);
}

function counted() {
  const all = ofSet().length, of = `${within.length.toLocaleString("en")} of ${plural(all, "model")}`;
  return limited() ? `${of} within the budgets` : within.length < all ? `${of} shown` : plural(all, "model");
}

function update() {
  compute();
  makeAxes();
  makeToggles();
  makeBudgets();
  drawFigure();
  makeModel();
  makeTable();
  $("count").textContent = GROUPS.length ? counted() : "no descendant has finished yet";
  writeAddress();
}

readAddress();
makeSurroundings();
makeCosts();
update();
document.body.classList.toggle("empty", !GROUPS.length);
$("reset").addEventListener("click", () => change({ budgets: {}, model: null }));
$("more").addEventListener("click", () => change({ lines: state.lines + 10 * PAGE_ROWS }));
$("chart").addEventListener("keydown", onKey);
$("chart").addEventListener("pointermove", (event) => showTip(nearest(event)));
$("chart").addEventListener("pointerleave", () => showTip(null));
$("chart").addEventListener("click", (event) => {
  const mark = nearest(event);
  if (mark) pickGroup(mark.group);
});
let drawnWidth = $("chart").clientWidth;
new ResizeObserver(() => {
  if (drawnWidth !== (drawnWidth = $("chart").clientWidth)) drawFigure();
}).observe($("chart"));
addEventListener("hashchange", () => {
  readAddress();
  update();
});
if (!$("running").hidden) follow();
