"use strict";
// The page of runs: asks every two seconds while it is looked at, and draws what changed.

const EVERY = 2000;
const parameters = () => new URLSearchParams(location.search);
let drawn = {};

const chosen = () => parameters().get("stage");

function open(id) {
  history.pushState({}, "", id ? address("runs.html", { stage: id }) : "runs.html");
  drawn = {};
  look().then(() => (id ? $("stage-title").focus() : null));
}

// Draws `make(value)` into a place when the value is another one than before.
function draw(place, value, make) {
  const now = JSON.stringify(value);
  if (drawn[place] === now) return;
  drawn[place] = now;
  const held = document.activeElement?.dataset?.id;
  $(place).replaceChildren(...[make(value)].flat());
  if (held) [...$(place).querySelectorAll("[data-id]")].find((node) => node.dataset.id === held)?.focus();
}

const STATES = {
  running: "running", finished: "finished", stopped: "stopped", killed: "ended without a word", silent: "no step for long", damaged: "damaged",
};

const state = (value) => el("span", { class: `chip state ${value}` }, STATES[value]);

function tile(stage) {
  const known = stage.steps ? `step ${stage.step.toLocaleString()} of ${stage.steps.toLocaleString()}` : `step ${stage.step.toLocaleString()}`;
  const row = (name, value) => [el("dt", {}, name), el("dd", {}, value)];
  return el("button", { class: "card tile", type: "button", "data-id": stage.id, onclick: () => open(stage.id) },
    el("span", { class: "tile-head" }, el("b", {}, stage.name), state(stage.state)),
    el("small", {}, stage.run),
    meter(stage.step, stage.steps ?? (stage.state === "finished" ? stage.step : null), known),
    el("small", {}, known, stage.left ? ` · ${duration(stage.left)} left` : ""),
    el("dl", { class: "numbers" }, row("loss", short(stage.loss)), row("tokens/s", short(stage.tokens_per_s)), row("GB", short(stage.memory_gb))),
    stage.read < 1 ? el("small", { class: "warn" }, `reading: ${Math.floor(100 * stage.read)} %`) : null,
    stage.damaged ? el("small", { class: "warn" }, `${stage.damaged} lines cannot be read`) : null);
}

function evaluations(rows) {
  if (!rows.length) return el("p", { class: "none" }, "None yet: vlm eval BENCH -m MODEL");
  const groups = Map.groupBy ? Map.groupBy(rows, (row) => row.run) : new Map([["", rows]]);
  return [...groups].map(([run, group]) => el("div", { class: "scroll card flat" }, el("table", {},
    el("caption", {}, run),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Benchmark"), el("th", { scope: "col" }, "Model"), el("th", { scope: "col", class: "n" }, "Score"), el("th", { scope: "col" }, "Items"))),
    el("tbody", {}, group.map(evaluation)))));
}

function evaluation(row) {
  const score = row.score === null ? "–" : row.score.toFixed(1);
  const bounds = row.low === null ? null : el("small", {}, `${row.low.toFixed(1)} – ${row.high.toFixed(1)}`);
  const running = row.state !== "finished";
  const items = row.total ? `${(row.done ?? 0).toLocaleString()} of ${row.total.toLocaleString()}` : "";
  return el("tr", {},
    el("td", { class: "name" }, running ? row.title : el("a", { href: address("samples.html", { evaluation: row.id }), "data-id": row.id }, row.title), row.mini ? el("small", { class: "warn" }, "miniature") : null),
    el("td", {}, row.model, el("small", {}, row.variant)),
    el("td", { class: "n" }, el("b", {}, score), bounds, running && row.score !== null ? el("small", {}, row.metric) : null),
    el("td", {}, running ? [state(row.state), meter(row.done ?? 0, row.total, `${row.title}: ${items}`)] : null,
      el("span", { class: "items" }, items, running && row.left ? ` · ${duration(row.left)} left` : ""), row.damaged ? el("small", { class: "warn" }, row.damaged) : null));
}

function facts(head) {
  const fact = (name, value, note) => el("div", {}, el("dt", {}, name), el("dd", {}, value, note ? el("small", {}, note) : null));
  return [
    fact("State", state(head.state), head.holder),
    fact("Step", head.step.toLocaleString(), head.steps ? `of ${head.steps.toLocaleString()}` : "of a number not recorded"),
    fact("Time left", head.state === "finished" ? "none" : duration(head.left), head.age === null ? "" : `last step ${duration(head.age)} ago`),
    fact("Loss", short(head.loss), "smoothed"),
    fact("Tokens / s", short(head.tokens_per_s), "median of 50 steps"),
    fact("Memory", head.memory_gb === null ? "–" : `${short(head.memory_gb)} GB`, "peak"),
    head.read < 1 ? fact("Reading", `${Math.floor(100 * head.read)} %`, "a long file") : null,
    head.damaged ? fact("Damaged lines", head.damaged, "left out of the curves") : null,
  ].filter(Boolean);
}

function chart({ title, unit, svg, lines }) {
  const drawing = new DOMParser().parseFromString(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), "image/svg+xml").documentElement;
  const said = el("small", { class: "pointed" }, unit);
  const box = el("figure", { class: title === "Loss" ? "card chart double" : "card chart" },
    el("figcaption", {}, title, said), drawing,
    lines.length > 1 ? el("ul", { class: "legend" }, lines.map((line, i) => el("li", { class: `c${i}` }, line.name))) : null);
  point(drawing, lines, said, unit);
  return box;
}

// Says the values under the pointer: the drawn corners of each line stand for its points, in the same order.
function point(drawing, lines, said, unit) {
  const drawnLines = [...drawing.querySelectorAll("polyline")].map((line) => [...line.points]);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ class: "cursor", y1: 12, y2: 200, visibility: "hidden" })) cursor.setAttribute(name, value);
  drawing.append(cursor);
  drawing.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse()).x;
    const nearest = drawnLines.map((corners) => {
      let low = 0, high = corners.length - 1;
      while (high - low > 1) { const middle = (low + high) >> 1; if (corners[middle].x < at) low = middle; else high = middle; }
      return at - corners[low].x < corners[high].x - at ? low : high;
    });
    const x = drawnLines[0][nearest[0]].x;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    said.textContent = `step ${lines[0].points[nearest[0]][0].toLocaleString()}: ` + lines.map((line, i) => `${lines.length > 1 ? `${line.name} ` : ""}${short(line.points[nearest[i]][1])}`).join(", ");
  });
  drawing.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); said.textContent = unit; });
}

function ledger({ counts, closes, reasons }) {
  const words = { in: "in", used: "used as they are", dropped: "dropped", truncated: "truncated", replaced: "replaced" };
  return [
    el("dl", { class: "facts" }, Object.entries(words).map(([key, name]) => el("div", {}, el("dt", {}, name), el("dd", {}, (counts[key] ?? 0).toLocaleString())))),
    el("p", {}, el("span", { class: `chip ${closes ? "ok" : "partial"}` }, closes ? "adds up" : "does not add up (yet): a step is being written, or lines are missing")),
    reasons.length ? el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "What"), el("th", { scope: "col" }, "Why"), el("th", { scope: "col", class: "n" }, "Samples"))),
      el("tbody", {}, reasons.map(([what, why, n]) => el("tr", {}, el("td", {}, what), el("td", { class: "id" }, why), el("td", { class: "n" }, n.toLocaleString()))))) : null,
  ].filter(Boolean);
}

async function look() {
  const id = chosen();
  $("stage").hidden = !id;
  $("list").hidden = Boolean(id);
  try {
    if (id) {
      const { head, charts, ledger: account } = await ask("/vlm/runs/stage", { id });
      if (chosen() !== id) return;
      document.title = `${head.name} · vlm`;
      draw("stage-title", [head.name, head.run], ([name, run]) => [name, el("small", {}, run)]);
      draw("facts", head, facts);
      if (!$("charts").matches(":hover") || !drawn.charts) draw("charts", charts, (all) => all.map(chart));
      draw("ledger-rows", account, ledger);
    } else {
      const all = await ask("/vlm/runs");
      if (chosen()) return;
      document.title = "Runs · vlm";
      const stages = all.stages.map(({ age, ...rest }) => rest);
      draw("stages", stages, (rows) => (rows.length ? rows.map(tile) : el("p", { class: "none" }, "None yet: vlm train --recipe NAME")));
      draw("evaluations", all.evaluations, evaluations);
      $("reports-title").hidden = !all.reports.length;
      draw("reports", all.reports, (rows) => rows.map((name) => el("li", {}, el("a", { href: `/vlm/reports/${name.split("/").map(encodeURIComponent).join("/")}` }, name))));
      draw("place", all.place, (place) => [`Read from ${place}`]);
    }
    $("problem").hidden = true;
  } catch (error) {
    $("problem").hidden = false;
    $("problem").textContent = error instanceof Refused ? error.message : "The server does not answer; what is shown may be old.";
  }
}

$("close").addEventListener("click", () => open(null));
addEventListener("popstate", () => { drawn = {}; look(); });
addEventListener("keydown", (event) => { if (event.key === "Escape" && chosen()) open(null); });

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY);
}
watch();
