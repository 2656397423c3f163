// The chart: plain SVG. All marks of an arm are one path, so ten thousand models are some dozens of elements.
const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  (x, y, r) => polygon(x, y, [[-r, -r], [r, -r], [r, r], [-r, r]], 0.9),
  (x, y, r) => polygon(x, y, [[0, -1.25 * r], [1.15 * r, 0.85 * r], [-1.15 * r, 0.85 * r]]),
  (x, y, r) => polygon(x, y, [[0, -1.35 * r], [1.1 * r, 0], [0, 1.35 * r], [-1.1 * r, 0]]),
  (x, y, r) => polygon(x, y, [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]], r),
  (x, y, r) => polygon(x, y, [[0, 1.25 * r], [1.15 * r, -0.85 * r], [-1.15 * r, -0.85 * r]]),
  (x, y, r) => polygon(x, y, [[-1, -1.2], [1, -1.2], [-1, 1.2], [1, 1.2]], r),
  (x, y, r) => polygon(x, y, [[-1.5, -0.5], [1.5, -0.5], [1.5, 0.5], [-1.5, 0.5]], r),
];

function polygon(x, y, points, factor = 1) {
  return `M${points.map(([dx, dy]) => `${tenth(x + dx * factor)} ${tenth(y + dy * factor)}`).join("L")}z`;
}

function tenth(value) {
  return Math.round(value * 10) / 10;
}

function svg(name, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function swatch(style) {
  const picture = svg("svg", { class: `swatch s${style.color}`, width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" });
  picture.append(svg("path", { d: SHAPES[style.shape](0, 0, 5) }));
  return picture;
}

function linearTicks(low, high, most) {
  const raw = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw) ?? 10 * power;
  const ticks = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) ticks.push(Number(value.toPrecision(12)));
  return ticks;
}

function logTicks(low, high, most) {
  if (high < 8 * low) return linearTicks(low, high, most / 1.6);
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
      for (const factor of factors) if (factor * 10 ** power >= low && factor * 10 ** power <= high) ticks.push(factor * 10 ** power);
    if (ticks.length <= most || factors.length === 1) return ticks.length > 1 ? ticks : linearTicks(low, high, most);
  }
  return [];
}

function scaler([low, high], [from, to], log) {
  const at = log ? Math.log : (value) => value;
  const span = at(high) - at(low) || 1;
  return (value) => from + ((at(value) - at(low)) / span) * (to - from);
}

// Draw panels side by side, and return where every group's mark is: [{group, x, y}].
function drawChart(host, view) {
  const width = Math.max(260, host.clientWidth), columns = Math.max(1, Math.min(view.panels.length, Math.floor(width / 240)));
  const rows = Math.ceil(view.panels.length / columns), titled = view.panels.length > 1;
  const left = 44, gap = 14, top = titled ? 46 : 24, bottom = 44;
  const inner = (width - left - 10 - gap * (columns - 1)) / columns;
  const tall = Math.max(180, Math.min(rows > 1 ? 260 : width < 560 ? 300 : 400, 0.8 * inner + 80));
  const height = rows * (tall + top + bottom);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const marks = [];
  view.panels.forEach((panel, index) => {
    const x0 = left + (index % columns) * (inner + gap), y0 = Math.floor(index / columns) * (tall + top + bottom) + top;
    const x = scaler(view.x.domain, [x0 + 12, x0 + inner - 12], view.x.log), y = scaler(view.y.domain, [y0 + tall, y0 + 6], false);
    marks.push(...drawPanel(root, view, panel, { x, y, x0, x1: x0 + inner, y0, y1: y0 + tall, first: index % columns === 0, titled }));
  });
  host.querySelector("svg")?.remove();
  host.prepend(root);
  return marks;
}

function drawPanel(root, view, panel, { x, y, x0, x1, y0, y1, first, titled }) {
  const add = (name, attributes, text) => root.appendChild(svg(name, attributes, text));
  if (titled) add("text", { x: x0, y: y0 - 30, class: "panel" }, fitting(panel.title, (x1 - x0) / 7));
  if (first) add("text", { x: x0 - 40, y: y0 - 8 }, view.y.label);
  for (const tick of linearTicks(...view.y.domain, 6)) {
    add("line", { x1: x0, x2: x1, y1: tenth(y(tick)), y2: tenth(y(tick)), class: "grid" });
    if (first) add("text", { x: x0 - 8, y: tenth(y(tick)) + 4, "text-anchor": "end" }, Number(tick.toFixed(2)).toString());
  }
  const ends = view.x.domain.map((value) => value / view.x.unit);
  const ticks = (view.x.log ? logTicks : linearTicks)(...ends, (x1 - x0) / 62).map((tick) => tick * view.x.unit);
  let last = -Infinity;
  for (const tick of ticks) {
    if (x(tick) - last < 46) continue;
    last = x(tick);
    add("line", { x1: tenth(x(tick)), x2: tenth(x(tick)), y1: y0, y2: y1, class: "grid" });
    add("text", { x: tenth(x(tick)), y: y1 + 18, "text-anchor": "middle" }, view.x.format(tick));
  }
  add("text", { x: (x0 + x1) / 2, y: y1 + 36, "text-anchor": "middle" }, view.x.label);
  const limit = view.x.limit === null ? x1 : Math.min(x1, Math.max(x0, x(view.x.limit) + 7));
  if (limit < x1) add("rect", { x: limit, y: y0, width: x1 - limit, height: y1 - y0, class: "shade" });
  for (const line of view.lines) {
    add("line", { x1: x0, x2: x1, y1: tenth(y(line.value)), y2: tenth(y(line.value)), class: "ancestry" });
    const end = view.chosen && x(view.x.cost(view.chosen)) < (x0 + x1) / 2;  // away from the chosen model's ring
    add("text", { x: end ? x1 - 4 : x0 + 4, y: tenth(y(line.value)) - 5, "text-anchor": end ? "end" : "start", class: "ancestry-name" }, fitting(line.text, (x1 - x0) / 7));
  }
  const radius = panel.groups.length > 1500 ? 2.5 : panel.groups.length > 300 ? 3.5 : 5;
  const series = new Map(), marks = [];
  for (const group of panel.groups) {
    const score = view.y.score(group), at = { group, x: tenth(x(view.x.cost(group))), y: tenth(y(score.mean)) };
    at.cut = score.mean < view.y.domain[0];
    if (at.cut) at.y = y1 - 4;
    marks.push(at);
    const style = view.style(group), name = `${style.color} ${style.shape} ${view.admits(group) ? "" : "faint"}`;
    if (!series.has(name)) series.set(name, { style, faint: !view.admits(group), shapes: [], spreads: [], before: [], lifts: [] });
    const each = series.get(name);
    if (at.cut) {
      each.shapes.push(`M${at.x - 4} ${at.y - 3}L${at.x + 4} ${at.y - 3}L${at.x} ${at.y + 4}z`);
      continue;
    }
    each.shapes.push(SHAPES[style.shape](at.x, at.y, radius));
    if (score.count > 1 && score.high > score.low)
      each.spreads.push(`M${at.x} ${tenth(Math.min(y1, y(score.low)))}V${tenth(y(score.high))}`);
    const before = view.before?.(group);
    if (before) {
      const inside = before.mean >= view.y.domain[0], height = inside ? tenth(y(before.mean)) : y1;
      if (inside) each.before.push(SHAPES[style.shape](at.x, height, 0.75 * radius));
      each.lifts.push(`M${at.x} ${height}V${at.y}`);
    }
  }
  const front = paretoFront(panel.groups.filter(view.admits), view.x.cost, (group) => view.y.score(group).mean);
  const corners = front.map((group) => [tenth(x(view.x.cost(group))), tenth(Math.min(y1, y(view.y.score(group).mean)))]);
  const line = corners.map(([cx, cy], index) => (index ? `H${cx}V${cy}` : `M${cx} ${cy}`)).join("");
  const layers = [...series.values()].sort((one, other) => other.faint - one.faint);
  const draw = (kind, name) => {
    for (const each of layers)
      if (each[kind].length) add("path", { d: each[kind].join(""), class: `${name} s${each.style.color}${each.faint ? " faint" : ""}` });
  };
  draw("lifts", "lift");
  draw("spreads", "spread");
  const many = panel.groups.length > 300;
  const drawFront = () => line && add("path", { d: `${line}H${tenth(limit)}`, class: "front" });
  if (!many) drawFront();
  draw("before", "before");
  draw("shapes", "marks");
  if (many) drawFront();  // else marks would hide it
  add("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: "frame" });
  for (const { group, x: cx, y: cy } of marks) if (group === view.chosen) add("circle", { cx, cy, r: 11, class: "ring" });
  return marks;
}

function fitting(text, most) {
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
}
