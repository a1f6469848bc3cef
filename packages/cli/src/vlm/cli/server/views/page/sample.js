"use strict";
// One sample: its pictures with the asked part, the whole prompt, reply, what was read from it, score and why.

const written = (value) => {
  if (typeof value === "string") return value;
  const words = Array.isArray(value) && value.length && value.every((v) => typeof v === "string");
  return words ? value.join(" | ") : JSON.stringify(value);
};

const block = (title, body) => el("div", {}, el("h3", {}, title), typeof body === "string" ? el("pre", {}, body === "" ? "(empty)" : body) : body);

function scoreChips(row) {
  const kind = verdict(row.score);
  return [
    el("span", { class: `chip ${kind}` }, kind === "unscored" ? "not scored" : kind),
    row.outcome === "ok" ? null : el("span", { class: `chip ${row.outcome}` }, row.outcome),
    row.score !== row.strict_score ? el("span", { class: "chip differs" }, "scorers differ") : null,
  ];
}

function pictures({ evaluation, number, row }) {
  const images = Array.isArray(row.images) ? row.images : [];
  if (!images.length) return null;
  const asked = new Set((row.asked ?? []).filter((a) => Number.isInteger(a)));
  const order = images.map((_, i) => i).sort((a, b) => asked.has(b) - asked.has(a) || a - b);
  const box = el("div", { class: images.length === 1 ? "media single" : "media" }, order.slice(0, 60).map((i) => {
    const source = address("/vlm/media", { evaluation, number, image: i, size: images.length === 1 ? 1024 : 480 });
    const frame = el("span", { class: asked.has(i) ? "frame asked" : "frame" });
    const name = String(images[i]).split("/").pop();
    frame.append(el("img", { src: source, alt: name, loading: "lazy", onerror: () => absent(frame, source) }));
    if (images.length === 1) boxes(frame, row);
    return el("figure", { id: `image-${i}` },
      frame, el("small", {}, `${i + 1}. ${name}${asked.has(i) ? " · asked about" : ""}`));
  }));
  return block(images.length === 1 ? "Image" : `${images.length} images`, box);
}

async function absent(frame, source) {
  let why = "it cannot be read";
  try { await ask(source); } catch (error) { if (error instanceof Refused) why = error.message; }
  frame.replaceChildren(el("span", { class: "absent" }, why));
}

// The reference box of a grounding question, drawn over the picture.
function boxes(frame, row) {
  const size = row.meta?.hw, gold = row.gold;
  if (!Array.isArray(size) || !Array.isArray(gold) || gold.length !== 4 || !gold.every(Number.isFinite)) return;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${size[1]} ${size[0]}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "the reference box");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const [left, top, right, bottom] = gold;
  for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) rect.setAttribute(name, value);
  svg.append(rect);
  frame.append(svg);
}

// The prompt as it was asked: a mark of a picture leads to it, and the asked part of a text is marked.
function prompt(row) {
  const text = String(row.prompt ?? "");
  const needles = (row.asked ?? []).filter((a) => typeof a === "string" && a && text.includes(a));
  const body = el("pre", { tabindex: 0, "aria-label": "Prompt" });
  let image = 0;
  for (const piece of text.split(/(<image>|<video>)/)) {
    if (piece === "<image>" || piece === "<video>") {
      const at = image++;
      body.append(el("button", { type: "button", class: "image-mark", onclick: () => $(`image-${at}`)?.scrollIntoView({ block: "center" }) }, `image ${at + 1}`));
      continue;
    }
    let rest = piece;
    while (rest) {
      const next = needles.map((needle) => [rest.indexOf(needle), needle]).filter(([at]) => at >= 0).sort((a, b) => a[0] - b[0])[0];
      if (!next) { body.append(rest); break; }
      body.append(rest.slice(0, next[0]), el("mark", {}, next[1]));
      rest = rest.slice(next[0] + next[1].length);
    }
  }
  return block(`Prompt${row.tokens ? `, ${row.tokens.toLocaleString()} tokens` : ""}`, body);
}

function side({ head, row }, title) {
  return el("div", {},
    el("div", { class: "side-head" }, title ? `${title}: ${head.model}` : null, ...scoreChips(row)),
    el("div", { class: "fields" },
      block("Reply", row.completion ?? ""),
      el("div", { class: "two" },
        block("Extracted", String(row.extracted ?? "")),
        block("Score", el("div", {}, `${points(row.score)} by the published rule`, el("br"), `${points(row.strict_score)} by the strict one`))),
      block("Why", String(row.why ?? ""))));
}

function sampleOf(found, { step, close, show }) {
  const { head, row, others, against, moved } = found;
  const bar = el("div", { class: "detail-bar" },
    el("h2", { id: "sample-title", tabindex: -1 }, String(row.id), el("small", {}, [head.title, row.group, head.model, head.variant].filter(Boolean).join(" · "))),
    el("button", { type: "button", "aria-label": "Previous sample", onclick: () => step(-1) }, "←"),
    el("button", { type: "button", "aria-label": "Next sample", onclick: () => step(1) }, "→"),
    el("button", { type: "button", "aria-label": "Close", onclick: close }, "✕"));
  const sides = against ? el("div", { class: "two" }, side(found, "A"), side(against, "B")) : side(found);
  const what = moved ? el("p", {}, el("span", { class: "chip" }, moved.kind), moved.causes.length ? `because of: ${moved.causes.join(", ")}` : "nothing moved") : null;
  const elsewhere = others.length && !against ? el("div", { class: "others" }, el("h3", {}, "The same item elsewhere"),
    others.map((o) => el("button", { type: "button", class: "plain", onclick: () => show(o) }, el("span", { class: `chip ${verdict(o.score)}` }, verdict(o.score)), `${o.model} · ${o.variant}: ${o.reply || "(none)"}`))) : null;
  return [bar, el("div", { class: "content" }, what, pictures(found), prompt(row), block("Gold", written(row.gold)), sides, elsewhere)];
}

const signed = (value) => (value === null ? "–" : `${value >= 0 ? "+" : ""}${value.toFixed(1)}`);

function movedOf({ a, b, change, kinds, causes, differences }) {
  const interval = change.low === null ? "" : ` (95 %: ${signed(change.low)} … ${signed(change.high)})`;
  const p = change.p === null ? "" : `, p ${change.p < 0.001 ? "< 0.001" : change.p.toPrecision(2)}`;
  const settings = Object.entries(differences.decode ?? {}).map(([key, [one, other]]) => `${key} ${JSON.stringify(one)} → ${JSON.stringify(other)}`);
  const why = [...Object.keys(differences).filter((key) => key !== "decode"), ...settings];
  return [
    el("div", {}, el("span", { class: "change" }, `${signed(change.difference)} points`), `${interval}${p} on ${change.items.toLocaleString()} items scored in both; A is ${a.model}, ${a.label}, B is ${b.model}, ${b.label} `),
    el("div", {}, Object.entries(kinds).map(([kind, n]) => el("span", { class: `chip ${{ gained: "right", lost: "wrong" }[kind] ?? ""}` }, `${kind} ${n.toLocaleString()}`)),
      Object.entries(causes).map(([cause, n]) => el("span", { class: "chip" }, `by ${cause} ${n.toLocaleString()}`))),
    why.length ? el("small", {}, `differs: ${why.slice(0, 8).join("; ")}`) : null,
  ].filter(Boolean);
}
