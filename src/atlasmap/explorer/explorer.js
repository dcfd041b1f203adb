// The atlas explorer: what the cells are is in #about, their numbers are packed in #cells.
"use strict";

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const MISSING = 65535;
const STEPS = 256; // of a gradient
const GREY = "#d9d9d9";
const UNITS = { Genes: "ln(1 + counts per 10,000)", Proteins: "ln(1 + denoised counts)" };
// Viridis (van der Walt & Smith 2015) at nine places; colours between are mixed.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962",
  "#addc30", "#fde725"];

const columns = new Map(about.columns.map((column) => [column.key, column]));
const state = { column: null, isolated: new Set(), selected: [], visible: null,
  painting: false, painted: null };
let plot, x, y, ids, index;

async function unpacked() {
  const letters = atob($("cells").textContent), raw = new Uint8Array(letters.length);
  for (let k = 0; k < raw.length; k++) raw[k] = letters.charCodeAt(k);
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function arrayAt(buffer, { at, bytes, type }) {
  const kinds = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
  const kind = kinds[type];
  return new kind(buffer, at, bytes / kind.BYTES_PER_ELEMENT);
}

function mixed(share) {
  const place = share * (VIRIDIS.length - 1), k = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const parts = [k, k + 1].map((i) => [1, 3, 5].map((c) => parseInt(VIRIDIS[i].slice(c, c + 2), 16)));
  const mix = parts[0].map((value, c) => Math.round(value + (parts[1][c] - value) * (place - k)));
  return "#" + mix.map((value) => value.toString(16).padStart(2, "0")).join("");
}
const GRADIENT = Array.from({ length: STEPS }, (_, k) => mixed(k / (STEPS - 1)));

const number = (value) => Number(value.toPrecision(3)).toLocaleString("en");
const valueOf = (column, cell) => column.values[cell] === MISSING ? null
  : column.low + (column.values[cell] / (MISSING - 1)) * (column.high - column.low);

function said(column, cell) {
  if (column.kind === "category") return column.names[column.values[cell]];
  const value = valueOf(column, cell);
  return value === null ? "not measured" : number(value);
}

// A colour is a whole number of a list: a category, or a step of the gradient and grey after it.
function codesOf(column) {
  if (column.kind === "category") return column.values;
  return Float32Array.from(column.values, (value) => value === MISSING ? STEPS
    : Math.round((value / (MISSING - 1)) * (STEPS - 1)));
}

// One painting at a time: the library refuses a second while the first is under way.
async function paint() {
  if (state.painting) return;
  state.painting = true;
  try {
    while (state.painted !== state.column) await paintBy(state.column);
  } finally {
    state.painting = false;
  }
}

async function paintBy(column) {
  const colors = column.kind === "category" ? column.colors : [...GRADIENT, GREY];
  // A list of one is taken for a colour of all.
  plot.set({ colorBy: "valueA", pointColor: colors.length > 1 ? colors : [...colors, GREY] });
  await plot.draw({ x, y, valueA: codesOf(column) },
    { zDataType: "categorical", spatialIndex: index, preventFilterReset: true });
  index = index || plot.get("spatialIndex");
  state.painted = column;
  document.body.dataset.painted = column.key;
}

function counts(column) {
  const out = new Uint32Array(column.names.length);
  for (const code of column.values) out[code] += 1;
  return out;
}

function item(column, code, n) {
  const li = document.createElement("li"), button = document.createElement("button");
  const parts = [["dot", ""], ["name", column.names[code]], ["n", n.toLocaleString("en")]];
  for (const [kind, text] of parts) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    button.append(span);
  }
  button.firstChild.style.background = column.colors[code];
  button.dataset.code = code;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => isolate(code, button));
  li.append(button);
  return li;
}

function showLegend() {
  const column = state.column, isCategory = column.kind === "category";
  $("categories").hidden = !isCategory;
  $("gradient").hidden = isCategory;
  if (!isCategory) {
    $("bar").style.background = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;
    $("low").textContent = number(column.low);
    $("high").textContent = number(column.high);
    const without = column.values.reduce((n, value) => n + (value === MISSING), 0);
    const lacking = without ? `Grey: ${without.toLocaleString("en")} cells without it. ` : "";
    $("missing").textContent = lacking + (UNITS[column.group] || "");
    return;
  }
  const n = counts(column);
  const present = [...n.keys()].filter((code) => n[code] > 0);
  $("names").replaceChildren(...present.map((code) => item(column, code, n[code])));
  $("find").value = "";
  find();
}

function find() {
  const wanted = $("find").value.trim().toLowerCase();
  let shown = 0;
  for (const li of $("names").children) {
    li.hidden = !li.textContent.toLowerCase().includes(wanted);
    shown += !li.hidden;
  }
  $("none").hidden = shown > 0;
}

function isolate(code, button) {
  const on = state.isolated.has(code);
  if (on) state.isolated.delete(code);
  else state.isolated.add(code);
  button.setAttribute("aria-pressed", String(!on));
  filter();
}

function showAll() {
  state.isolated.clear();
  for (const button of $("names").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", "false");
  }
  filter();
}

function visibleCells() {
  const role = columns.get("role"), boxes = [...$("roles").querySelectorAll("input")];
  const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
  if (!state.isolated.size && !hidden.size) return null;
  const out = [], column = state.column;
  for (let cell = 0; cell < about.n; cell++) {
    if (state.isolated.size && !state.isolated.has(column.values[cell])) continue;
    if (hidden.size && hidden.has(role.names[role.values[cell]])) continue;
    out.push(cell);
  }
  return out;
}

function filter() {
  state.visible = visibleCells();
  if (state.visible) plot.filter(state.visible);
  else plot.unfilter();
  $("all").disabled = state.isolated.size === 0;
  document.body.dataset.visible = state.visible ? state.visible.length : about.n;
}

async function colorBy(key) {
  state.column = columns.get(key);
  state.isolated.clear();
  showLegend();
  filter();
  await paint();
}

function cell(row, tag, text, scope) {
  const out = document.createElement(tag);
  out.textContent = text;
  if (scope) out.scope = scope;
  row.append(out);
}

// A row a label, a column a batch, the largest first.
function showSelection(cells) {
  state.selected = cells;
  $("actions").hidden = !cells.length;
  $("composition").replaceChildren();
  const n = cells.length.toLocaleString("en");
  $("count").textContent = cells.length ? `${n} cells: labels in rows, batches in columns.`
    : "None yet. Press “Lasso” and draw around some cells, or take all that are shown.";
  document.body.dataset.selected = cells.length;
  if (!cells.length) return;
  const label = columns.get("predicted_label") || columns.get("label"), batch = columns.get("batch");
  const [labels, batches, pairs] = [new Map(), new Map(), new Map()];
  const add = (map, key) => map.set(key, (map.get(key) || 0) + 1);
  for (const k of cells) {
    const [a, b] = [label.values[k], batch.values[k]];
    add(labels, a);
    add(batches, b);
    add(pairs, `${a} ${b}`);
  }
  const largest = (map) => [...map.entries()].sort((a, b) => b[1] - a[1]).map(([key]) => key);
  const order = largest(batches), table = document.createElement("table");
  const head = table.createTHead().insertRow();
  cell(head, "th", label.title, "col");
  cell(head, "th", "all", "col");
  for (const b of order) cell(head, "th", batch.names[b], "col");
  const body = table.createTBody();
  for (const a of largest(labels)) {
    const row = body.insertRow();
    cell(row, "th", label.names[a], "row");
    cell(row, "td", labels.get(a).toLocaleString("en"));
    for (const b of order) cell(row, "td", (pairs.get(`${a} ${b}`) || 0).toLocaleString("en"));
  }
  $("composition").append(table);
}

// What a lasso does, for keyboards: everything that is shown.
function selectShown() {
  plot.select(state.visible || Array.from({ length: about.n }, (_, k) => k));
}

function download() {
  const quoted = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const batch = columns.get("batch");
  const rows = state.selected.map((k) => `${quoted(ids[k])},${quoted(said(batch, k))}`);
  const file = new Blob(["cell_id,batch\n" + rows.join("\n") + "\n"], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = "selected_cells.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function showCard(k) {
  const card = $("hover"), [px, py] = plot.getScreenPosition(k), box = $("map").getBoundingClientRect();
  const id = document.createElement("b"), list = document.createElement("dl");
  id.textContent = ids[k];
  const shown = about.card.includes(state.column.key) ? about.card : [...about.card, state.column.key];
  const isQuery = said(columns.get("role"), k) === "query";
  for (const key of shown) {
    if (columns.get(key).of_query && !isQuery) continue;
    cell(list, "dt", columns.get(key).title);
    cell(list, "dd", said(columns.get(key), k));
  }
  card.replaceChildren(id, list);
  card.hidden = false;
  const left = px + 16 + card.offsetWidth > box.width ? px - 16 - card.offsetWidth : px + 16;
  card.style.left = `${Math.max(4, left)}px`;
  card.style.top = `${Math.max(4, Math.min(py + 12, box.height - card.offsetHeight - 4))}px`;
}

function mode(name) {
  plot.set({ mouseMode: name === "lasso" ? "lasso" : "panZoom" });
  for (const key of ["pan", "lasso"]) $(key).setAttribute("aria-pressed", String(key === name));
}

function fillSelect() {
  for (const group of ["Cells", "Proteins", "Genes"]) {
    const own = about.columns.filter((column) => column.group === group && column.legend);
    if (!own.length) continue;
    const options = document.createElement("optgroup");
    options.label = UNITS[group] ? `${group}, ${UNITS[group]}` : group;
    for (const { key, title } of own) options.append(new Option(title, key));
    $("color").append(options);
  }
}

function listen() {
  $("color").addEventListener("change", () => colorBy($("color").value));
  $("find").addEventListener("input", find);
  $("all").addEventListener("click", showAll);
  $("roles").addEventListener("change", filter);
  $("pan").addEventListener("click", () => mode("pan"));
  $("lasso").addEventListener("click", () => mode("lasso"));
  $("reset").addEventListener("click", () => plot.reset());
  $("download").addEventListener("click", download);
  $("clear").addEventListener("click", () => plot.deselect());
  $("shown").addEventListener("click", selectShown);
  plot.subscribe("pointover", showCard);
  plot.subscribe("pointout", () => { $("hover").hidden = true; });
  plot.subscribe("view", () => { $("hover").hidden = true; });
  plot.subscribe("select", ({ points }) => showSelection([...points]));
  plot.subscribe("deselect", () => showSelection([]));
  new ResizeObserver(([{ contentRect: { width, height } }]) => {
    if (width && height) plot.set({ width, height });
  }).observe($("map"));
}

async function start() {
  const buffer = await unpacked();
  for (const column of about.columns) column.values = arrayAt(buffer, column.data);
  [x, y] = [arrayAt(buffer, about.x), arrayAt(buffer, about.y)];
  ids = new TextDecoder().decode(new Uint8Array(buffer, about.ids.at, about.ids.bytes)).split("\0");
  const { width, height } = $("map").getBoundingClientRect();
  plot = scatterplot.default({
    canvas: $("canvas"), width, height, backgroundColor: "#ffffff", lassoColor: "#0072b2",
    pointColorActive: "#1a1a1a", pointColorHover: "#1a1a1a", pointOutlineWidth: 1,
    pointSize: Math.min(7, Math.max(1.2, 900 / Math.sqrt(about.n) / 2.5)), opacity: 0.85,
    opacityInactiveMax: 0.3, deselectOnDblClick: false, cameraDistance: Math.max(1, height / width),
  });
  fillSelect();
  listen();
  await colorBy($("color").value);
  $("wait").remove();
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  $("wait").textContent = `This page could not be drawn: ${error.message}. A browser of 2023 or ` +
    "later with WebGL is needed.";
  throw error;
});
