"use strict";
// The page of samples: filters, a list of which only the rows in sight exist, and one sample beside it.

const HEIGHT = 84, PIECE = 100;
const NAMES = ["text", "benchmark", "group", "model", "evaluation", "score", "outcome", "against", "kind"];
const form = $("filters");
let facets = { evaluations: [], groups: {} };
let wanted = {}; // the filters of the list that is shown
let total = 0;
let pieces = new Map(); // number of a piece -> its rows, or the promise of them
let active = -1; // the row that the keyboard is at
let shown = null; // {evaluation, number} of the open sample
let asking = null;

const filters = () => Object.fromEntries(NAMES.map((name) => [name, form.elements[name].value.trim()]));
const label = (head) => `${head.model} · ${head.variant}${head.run ? ` · ${head.run}` : ""}`;

const offered = {}; // what each field offers: a list that is open is never exchanged for an equal one

function options(name, pairs) {
  const select = form.elements[name];
  const held = select.dataset.wish ?? select.value;
  const now = JSON.stringify(pairs);
  if (offered[name] === now && !select.dataset.wish) return;
  offered[name] = now;
  select.replaceChildren(select.options[0], ...pairs.map(([value, text]) => el("option", { value }, text)));
  select.value = held;
  if (select.value === held) delete select.dataset.wish; else select.value = "";
}

function fillFilters() {
  const { evaluations, groups } = facets;
  const titles = [...new Set(evaluations.map((e) => e.title))].sort();
  options("benchmark", titles.map((t) => [t, t]));
  const chosen = form.elements.benchmark.value;
  const here = evaluations.filter((e) => !chosen || e.title === chosen);
  options("model", [...new Set(here.map((e) => e.model))].sort().map((m) => [m, m]));
  options("evaluation", here.map((e) => [e.id, chosen ? label(e) : `${e.title} · ${label(e)}`]));
  const all = chosen ? groups[chosen] ?? [] : [...new Set(Object.values(groups).flat())].sort();
  options("group", all.map((g) => [g, g]));
  form.elements.group.hidden = !all.length;
  const one = evaluations.find((e) => e.id === form.elements.evaluation.value);
  options("against", one ? evaluations.filter((e) => e.benchmark === one.benchmark && e.id !== one.id).map((e) => [e.id, `beside ${label(e)}`]) : []);
  form.elements.against.hidden = !one;
  form.elements.kind.hidden = !form.elements.against.value;
  if (form.elements.kind.hidden) form.elements.kind.value = "";
}

function remember() {
  const query = { ...filters(), ...(shown ? { at: shown.evaluation, number: shown.number } : {}) };
  history.replaceState({}, "", address("samples.html", query));
}

async function filter() {
  fillFilters();
  remember();
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const now = filters();
  try {
    let answer;
    if (now.against && now.against !== wanted.against) $("matches").textContent = "comparing …";
    for (;;) {
      answer = await ask("/vlm/samples", { ...now, offset: 0, limit: PIECE }, signal);
      if (!answer.reading) break;
      const { done, left } = answer.reading;
      $("matches").textContent = `reading evaluation ${done + 1} of ${done + left}`;
    }
    wanted = now;
    total = answer.total;
    pieces = new Map([[0, answer.rows]]);
    active = total ? 0 : -1;
    $("space").style.height = `${total * HEIGHT}px`;
    $("rows").scrollTop = 0;
    drawRows();
    $("matches").textContent = `${total.toLocaleString()} of ${answer.of.toLocaleString()} samples`;
    problem(answer.problems.length ? answer.problems.slice(0, 3).join("; ") : "");
    performance.mark("filtered");
    compare(now);
    if (!Object.keys(facets.groups).length) loadFacets();
  } catch (error) {
    if (error.name !== "AbortError") problem(error instanceof Refused ? error.message : "The server does not answer.");
  }
}

function problem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

async function loadFacets() {
  facets = await ask("/vlm/samples/facets");
  if (facets.evaluations.length && !Object.keys(facets.groups).length) facets.groups = { "": [] };
  fillFilters();
}

// the list

function rowAt(number) {
  const at = Math.floor(number / PIECE);
  const piece = pieces.get(at);
  if (Array.isArray(piece)) return piece[number % PIECE];
  if (!piece) {
    const mine = pieces;
    pieces.set(at, ask("/vlm/samples", { ...wanted, offset: at * PIECE, limit: PIECE }).then(
      ({ rows }) => { mine.set(at, rows); if (mine === pieces) drawRows(); },
      () => mine.delete(at)));
  }
  return null;
}

function drawRows() {
  const box = $("rows");
  const first = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - 4);
  const last = Math.min(total, Math.ceil((box.scrollTop + box.clientHeight) / HEIGHT) + 4);
  const made = [];
  for (let number = first; number < last; number++) {
    const row = rowAt(number);
    const node = row ? rowOf(row, number) : el("div", { class: "row", role: "option", id: `row-${number}` }, el("span", { class: "absent" }, "…"));
    node.style.top = `${number * HEIGHT}px`;
    made.push(node);
  }
  $("space").replaceChildren(...made);
  if (active >= 0) box.setAttribute("aria-activedescendant", `row-${active}`); else box.removeAttribute("aria-activedescendant");
}

const thumbnails = new Map(); // address -> the element: a row that comes into sight again asks for nothing

function thumbnail(row) {
  if (!row.images) return el("span", { class: "thumb" }, "no image");
  const source = address("/vlm/media", { evaluation: row.evaluation, number: row.number, image: row.asked ?? 0, size: 128 });
  if (!thumbnails.has(source)) {
    if (thumbnails.size > 400) thumbnails.delete(thumbnails.keys().next().value);
    const box = el("span", { class: "thumb" });
    box.append(el("img", { src: source, alt: "", loading: "lazy", onerror: () => box.replaceChildren("no image") }));
    thumbnails.set(source, box);
  }
  return thumbnails.get(source).cloneNode(true);
}

function rowOf(row, number) {
  const kind = verdict(row.score);
  const chips = [el("span", { class: `chip ${kind}` }, kind === "unscored" ? "not scored" : kind)];
  if (row.outcome !== "ok") chips.push(el("span", { class: `chip ${row.outcome}` }, row.outcome));
  if (row.score !== row.strict) chips.push(el("span", { class: "chip differs" }, "scorers differ"));
  if (row.kind) chips.push(el("span", { class: `chip ${{ gained: "right", lost: "wrong" }[row.kind] ?? ""}` }, row.kind));
  const other = "other_reply" in row;
  const reply = other ? `${row.reply || "(none)"} → ${row.other_reply || "(none)"}` : row.reply || "(none)";
  const open = shown && shown.evaluation === row.evaluation && shown.number === row.number;
  return el("div", {
    class: "row", role: "option", id: `row-${number}`, "aria-setsize": total, "aria-posinset": number + 1, "aria-selected": open ? "true" : "false",
    onclick: () => { active = number; show(row); },
  },
    thumbnail(row),
    el("div", { class: "line about" }, chips, [row.id, row.title, row.group, row.model].filter(Boolean).join(" · ")),
    el("div", { class: "line" }, row.question),
    el("div", { class: "line" }, el("b", {}, reply), row.gold === "null" ? "" : ` · gold: ${row.gold}`));
}

function move(to) {
  if (!total) return;
  active = Math.max(0, Math.min(total - 1, to));
  const box = $("rows"), top = active * HEIGHT;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + HEIGHT - box.clientHeight;
  drawRows();
  const row = rowAt(active);
  if (shown && row) show(row, false);
}

$("rows").addEventListener("scroll", () => requestAnimationFrame(drawRows));
new ResizeObserver(() => drawRows()).observe($("rows"));
$("rows").addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor($("rows").clientHeight / HEIGHT) - 1);
  const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: total - 1 }[event.key];
  if (to !== undefined) { event.preventDefault(); move(to); }
  if (event.key === "Enter" && rowAt(active)) show(rowAt(active));
});

// one sample

async function show({ evaluation, number, id }, focus = true) {
  try {
    const found = await ask("/vlm/samples/one", { evaluation, number, id, against: wanted.against });
    shown = { evaluation: found.evaluation, number: found.number };
    $("split").classList.add("opened");
    $("detail").hidden = false;
    const step = (by) => move((active < 0 ? 0 : active) + by);
    $("detail").replaceChildren(...sampleOf(found, { step, close, show }));
    $("detail").scrollTop = 0;
    if (focus && matchMedia("(max-width: 760px)").matches) $("sample-title").focus();
    drawRows();
    remember();
  } catch (error) {
    problem(error instanceof Refused ? error.message : "The server does not answer.");
  }
}

function close() {
  shown = null;
  $("split").classList.remove("opened");
  $("detail").hidden = true;
  $("detail").replaceChildren();
  drawRows();
  remember();
  $("rows").focus();
}

addEventListener("keydown", (event) => { if (event.key === "Escape" && shown) close(); });

// two runs

async function compare(now) {
  $("moved").hidden = !now.against;
  if (!now.against) return;
  try {
    const found = await ask("/vlm/samples/compare", { a: now.evaluation, b: now.against });
    if (filters().against === now.against) $("moved").replaceChildren(...movedOf(found));
  } catch (error) {
    problem(error instanceof Refused ? error.message : "The server does not answer.");
  }
}

// the start: filters and the sample come from the address

async function start() {
  const given = new URLSearchParams(location.search);
  for (const name of NAMES) {
    const value = given.get(name);
    if (!value) continue;
    if (form.elements[name].tagName === "SELECT") form.elements[name].dataset.wish = value;
    else form.elements[name].value = value;
  }
  for (const name of ["score", "outcome", "kind"]) {
    const select = form.elements[name];
    if (select.dataset.wish) { select.value = select.dataset.wish; delete select.dataset.wish; }
  }
  form.elements.text.addEventListener("input", filter);
  for (const select of form.querySelectorAll("select")) select.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  try { await loadFacets(); } catch (error) { problem(error instanceof Refused ? error.message : "The server does not answer."); return; }
  fillFilters(); // a second time: one filter decides what another offers
  if (given.get("evaluation") && !form.elements.evaluation.value) {
    const known = facets.evaluations.find((e) => given.get("evaluation").endsWith(e.id) || e.id.endsWith(given.get("evaluation")));
    if (known) form.elements.evaluation.value = known.id;
  }
  await filter();
  if (given.get("at")) show({ evaluation: given.get("at"), number: given.get("number") });
  else if (given.get("id")) show({ evaluation: form.elements.evaluation.value || given.get("evaluation"), id: given.get("id") });
}
start();
