"use strict";
// The sample browser: filters over embedded samples, a grid of cards, a panel for one sample.
const $ = (selector, root = document) => root.querySelector(selector);

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});

const { samples, images } = JSON.parse($("#data").textContent);
const form = $("#filters");
const PAGE = matchMedia("(max-width: 640px)").matches ? 6 : 24;
// On the server of `vlm view` or `vlm serve` a sample of the page leads to all of them.
const served = location.pathname.startsWith("/vlm/reports/") ? "/view/samples.html" : null;
let matching = [];
let visible = PAGE;

// All text goes through textContent: prompts and answers can hold anything.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const written = (value) => {
  if (typeof value === "string") return value;
  const words = Array.isArray(value) && value.length && value.every((v) => typeof v === "string");
  return words ? value.join(" | ") : JSON.stringify(value);
};
const points = (value) => (value === null ? "–" : String(Math.round(value * 1000) / 1000));

function chips(sample) {
  return el("div", { class: "chips" },
    el("span", { class: `chip ${sample.verdict}` }, sample.verdict),
    sample.outcome === "ok" ? null : el("span", { class: `chip ${sample.outcome}` }, sample.outcome),
    sample.differs ? el("span", { class: "chip differs" }, "scorers differ") : null);
}

function picture(sample, i) {
  const name = sample.images[i];
  return name ? el("img", { src: images[name], alt: sample.files[i], loading: "lazy" }) : el("span", { class: "absent" }, "cannot be read");
}

function question({ prompt, needles }) {
  const plain = prompt.replaceAll(/<(image|video)>/g, " ").trim();
  const needle = needles.find((text) => plain.length > 500 && plain.includes(text));
  if (needle) return `“${needle}” … ${plain.slice(-110)}`;
  return plain.length > 500 ? "… " + plain.slice(-110) : plain; // a long context ends with its question
}

function card(sample, i) {
  const shown = sample.images.slice(0, sample.asked ? Math.min(sample.asked, 3) : 3);
  const strip = el("div", { class: sample.asked ? "strip whole" : "strip" }, ...shown.map((_, n) => picture(sample, n)));
  if (!sample.images.length) strip.append(el("span", { class: "absent" }, "no image"));
  return el("button", { class: "sample", type: "button", onclick: () => show(i) }, strip,
    el("div", { class: "body" }, chips(sample),
      el("div", { class: "question" }, question(sample)),
      el("dl", { class: "pair" },
        el("dt", {}, "answer"), el("dd", {}, sample.completion || "(none)"),
        el("dt", {}, "gold"), el("dd", {}, written(sample.gold))),
      el("small", { class: "where" }, `${sample.benchmark} · ${sample.run}`)));
}

function draw() {
  $("#grid").replaceChildren(...matching.slice(0, visible).map(card));
  $("#matches").textContent = `${matching.length} of ${samples.length} samples`;
  $("#more").hidden = matching.length <= visible;
}

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const text = wanted.text.trim().toLowerCase();
  matching = samples.filter((s) =>
    ["benchmark", "run", "verdict", "outcome"].every((key) => !wanted[key] || s[key] === wanted[key]) &&
    (!wanted.differs || s.differs) &&
    (!text || [s.prompt, s.completion, written(s.gold), s.id, s.group].some((t) => t.toLowerCase().includes(text))));
  visible = PAGE;
  draw();
}

const block = (title, text) => el("div", {}, el("h4", {}, title), el("pre", {}, text === "" ? "(empty)" : text));

// The prompt, with the asked parts of its text marked.
function marked({ prompt, needles }) {
  const body = el("pre");
  let rest = prompt || "(empty)";
  for (;;) {
    const [at, needle] = needles.map((n) => [rest.indexOf(n), n]).filter(([i, n]) => n && i >= 0).sort((a, b) => a[0] - b[0])[0] ?? [-1, ""];
    if (at < 0) break;
    body.append(rest.slice(0, at), el("mark", {}, needle));
    rest = rest.slice(at + needle.length);
  }
  body.append(rest);
  return body;
}

function show(i) {
  const s = matching[i];
  const panel = $("#panel");
  const step = (by) => show((i + by + matching.length) % matching.length);
  const others = samples.filter((o) => o !== s && o.id === s.id && o.benchmark === s.benchmark);
  panel.replaceChildren(
    el("div", { class: "bar" },
      el("h3", { id: "panel-title" }, s.id, el("small", {}, [s.benchmark, s.group, s.run].filter(Boolean).join(" · "))),
      el("button", { type: "button", "aria-label": "Previous sample", onclick: () => step(-1) }, "←"),
      el("button", { type: "button", "aria-label": "Next sample", onclick: () => step(1) }, "→"),
      el("button", { type: "button", "aria-label": "Close", onclick: () => panel.close() }, "✕")),
    el("div", { class: "content" },
      s.images.length ? el("div", { class: "media" }, ...s.images.map((_, n) => el("figure", n < s.asked ? { class: "asked" } : {}, picture(s, n), el("small", {}, s.files[n], n < s.asked ? " · asked about" : "")))) : null,
      s.more ? el("small", {}, `and ${s.more} more images that are not embedded`) : null,
      el("div", {}, el("h4", {}, "Prompt"), marked(s)),
      el("div", { class: "two" }, block("Answer", s.completion), block("Gold", written(s.gold))),
      el("div", { class: "two" },
        block("Extracted", s.extracted),
        el("div", {}, el("h4", {}, "Score"), el("div", {}, `${points(s.score)} upstream · ${points(s.strict)} strict`), chips(s))),
      block("Why", s.why),
      served ? el("a", { href: `${served}?${new URLSearchParams({ evaluation: s.place, id: s.id })}` }, "This sample with its whole prompt, among all") : null,
      others.length ? el("div", { class: "others" }, el("h4", {}, "The same item elsewhere"),
        ...others.map((o) => el("button", { type: "button", onclick: () => { matching = [o, ...matching]; show(0); matching.shift(); } },
          `${o.run}: ${o.completion || "(none)"} (${o.verdict})`))) : null));
  panel.onkeydown = (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  if (!panel.open) panel.showModal();
  $(".content", panel).scrollTop = 0;
}

if (served) for (const link of document.querySelectorAll(".served")) { link.hidden = false; link.querySelector("a").href = served; }

if (form) {
  for (const key of ["benchmark", "run", "verdict", "outcome"]) {
    const values = [...new Set(samples.map((s) => s[key]))].sort();
    form.elements[key].append(...values.map((v) => el("option", { value: v }, v)));
  }
  form.addEventListener("input", filter);
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  $("#more").addEventListener("click", () => { visible += PAGE; draw(); });
  $("#panel").addEventListener("click", (event) => { if (event.target === event.currentTarget) event.currentTarget.close(); });
  filter();
}
