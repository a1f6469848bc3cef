"use strict";
// The chat page: talks to /v1/chat/completions of the server that it comes from. No request leaves it.

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", attributes = {}) => {
  const element = Object.assign(document.createElement(tag), attributes);
  if (text) element.textContent = text;
  return element;
};

let turns = []; // {role, text, files: [{name, kind, url}], facts}; of a reply also sides, failed, stopped, lost
let files = []; // attached to the next question
let cards = []; // /v1/models
let running = null; // AbortController of the reply in progress
let following = true; // the end of the conversation stays in sight until somebody scrolls up
let scrolled = 0;

const strideAt = (value) => 2 ** (Number(value) - 2); // 1/4, 1/2, 1, … 64
const headers = () => {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

async function refusal(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status}.`; // a balancer in front of it has pages of its own
  }
}

// What is said of an error: fetch calls every lost connection a TypeError.
const reason = (error) => (error instanceof TypeError ? "The connection to the server was lost." : error.message);

async function loadModels() {
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    if (!answer.ok) throw new Error(await refusal(answer));
    cards = (await answer.json()).data;
  } catch (error) {
    $("problem").textContent = reason(error);
    return;
  }
  $("model").replaceChildren(...cards.map((card) => make("option", card.id, { value: card.id })));
  showModel();
  $("problem").textContent = "";
}

function showModel() {
  const card = cards.find((c) => c.id === $("model").value);
  if (!card) return;
  $("own").textContent = card.vlm.strides === null ? "(plain)" : `(stride ${card.vlm.strides})`;
  $("tiles").disabled = card.vlm.image_rule.kind !== "tiles";
  $("frames").placeholder = card.vlm.frames;
}

function strides() {
  const chosen = document.querySelector("input[name=strides]:checked").value;
  return stridesOf(chosen === "v2pe" ? strideAt($("stride").value) : chosen);
}

function stridesOf(chosen) {
  if (chosen === "plain") return null;
  return chosen === "model" ? chosen : Number(chosen);
}

function stridesName(chosen) {
  if (chosen === null) return "plain";
  return chosen === "model" ? "the model's own" : `stride ${chosen}`;
}

// files

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function attach(list) {
  for (const file of list) {
    const kind = file.type.split("/")[0];
    if (kind !== "image" && kind !== "video") {
      $("problem").textContent = `${file.name} is no picture or video`;
      continue;
    }
    files.push({ name: file.name || "pasted picture", kind, url: await readFile(file) });
  }
  showFiles();
}

function showFiles() {
  $("files").replaceChildren(
    ...files.map((file, i) => {
      const item = make("li");
      const remove = make("button", "×", { type: "button", ariaLabel: `Remove ${file.name}` });
      remove.onclick = () => {
        files.splice(i, 1);
        showFiles();
      };
      item.append(shown(file), file.name, remove);
      return item;
    }),
  );
}

function shown(file) {
  if (file.kind === "video") return make("video", "", { src: file.url, controls: true, muted: true });
  return make("img", "", { src: file.url, alt: file.name });
}

// the conversation

function markdown(text) {
  const html = marked.parse(text, { breaks: true });
  return DOMPurify.sanitize(html, { FORBID_TAGS: ["style", "form", "input", "iframe", "img"], FORBID_ATTR: ["style"] });
}

function figure(file, image, frames) {
  const box = make("figure");
  box.append(shown(file));
  if (image && file.kind === "image") {
    const [columns, rows] = image.grid;
    let path = "";
    for (let c = 1; c < columns; c++) path += `M${c} 0V${rows}`;
    for (let r = 1; r < rows; r++) path += `M0 ${r}H${columns}`;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.setAttribute("preserveAspectRatio", "none");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("d", path);
    svg.append(line);
    const picture = box.firstChild;
    const fit = () => {
      svg.setAttribute("width", picture.clientWidth);
      svg.setAttribute("height", picture.clientHeight);
    };
    picture.addEventListener("load", fit);
    new ResizeObserver(fit).observe(picture);
    box.append(svg);
    const extra = image.thumbnail ? " and the whole" : "";
    box.append(make("figcaption", `${image.size.join(" × ")}, ${columns} × ${rows} tiles${extra}`));
  }
  if (frames && file.kind === "video") box.append(make("figcaption", `${frames} frames, a tile each`));
  return box;
}

function showTurn(turn, index) {
  const item = make("li", "", { className: turn.role });
  const who = make("div", turn.role === "user" ? "You" : "Reply", { className: "who" });
  const action = (label, act) => {
    const button = make("button", label, { type: "button" });
    button.onclick = act;
    who.append(button);
  };
  if (turn.role === "user") action("Edit", () => edit(index));
  else {
    action("Copy", (event) => copy(written(turn), event.target));
    action("Retry", () => retry(index));
  }
  item.append(who);
  if (turn.files?.length) {
    const media = make("div", "", { className: "media" });
    let images = 0;
    for (const file of turn.files) {
      media.append(figure(file, file.kind === "image" ? turn.facts?.images[images++] : null, turn.facts?.frames));
    }
    item.append(media);
  }
  if (turn.sides) {
    const pair = make("div", "", { className: "pair" });
    for (const side of turn.sides) {
      const box = make("div");
      box.append(make("small", side.label), said(side, "assistant"));
      pair.append(box);
    }
    item.append(pair);
  } else item.append(said(turn, turn.role));
  return item;
}

function said(turn, role) {
  const body = make("div", "", { className: "said" });
  if (role === "user") body.textContent = turn.text;
  else body.innerHTML = markdown(turn.text);
  if (turn.failed) body.append(make("p", turn.failed, { className: "failed" }));
  turn.element = body;
  return body;
}

const written = (turn) => turn.sides?.map((side) => `${side.label}:\n${side.text}`).join("\n\n") ?? turn.text;

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without https a page of another machine has no clipboard
    const area = make("textarea", "", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function showAll() {
  $("turns").replaceChildren(...turns.map(showTurn));
  following = true;
  showEnd();
}

function redraw(turn) {
  const index = turns.indexOf(turn);
  if (index >= 0) $("turns").children[index].replaceWith(showTurn(turn, index));
}

function showEnd() {
  const last = $("turns").lastElementChild;
  if (!last) return;
  last.style.scrollMarginBottom = `${$("ask").offsetHeight + 8}px`; // the form stays over the end of the page
  last.scrollIntoView({ block: "end" });
}

function endInSight() {
  const last = $("turns").lastElementChild;
  return !last || last.getBoundingClientRect().bottom < innerHeight - $("ask").offsetHeight + 40;
}

function edit(index) {
  stop();
  const turn = turns[index];
  turns = turns.slice(0, index);
  files = turn.files;
  $("question").value = turn.text;
  showAll();
  showFiles();
  $("question").focus();
}

function retry(index) {
  stop();
  turns = turns.slice(0, index);
  reply();
}

function content(turn) {
  const parts = turn.files.map((file) => ({ type: `${file.kind}_url`, [`${file.kind}_url`]: { url: file.url } }));
  return [...parts, { type: "text", text: turn.text }];
}

function body(chosen) {
  const messages = turns
    .filter((turn, i) => !(turn.role === "user" ? turns[i + 1] : turn)?.lost) // with its reply a question is lost too
    .map((turn) => ({ role: turn.role, content: turn.role === "user" ? content(turn) : turn.text }));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const own = { strides: chosen };
  if ($("frames").value) own.frames = Number($("frames").value);
  if ($("tiles").value && !$("tiles").disabled) own.max_tiles = Number($("tiles").value);
  return {
    model: $("model").value,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: Number($("tokens").value) || 256,
    temperature: Number($("temperature").value) || 0,
    vlm: own,
  };
}

async function stream(request, side, signal) {
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(),
    body: JSON.stringify(request),
    signal,
  });
  if (!answer.ok) throw new Error(await refusal(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done && !ended) throw new Error("The reply was cut off.");
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") ended = true;
      if (!line.startsWith("data: ") || ended) continue;
      const piece = JSON.parse(line.slice(6));
      if (piece.error) throw new Error(piece.error.message);
      if (piece.usage) {
        side.usage = piece.usage;
        side.facts = piece.vlm;
      }
      side.text += piece.choices[0]?.delta.content ?? "";
      side.element.innerHTML = markdown(side.text);
    }
  }
}

async function reply() {
  const question = turns.at(-1);
  const turn = { role: "assistant", text: "" };
  const request = body(strides());
  const requests = [request];
  if ($("compare").checked) {
    requests.push({ ...request, vlm: { ...request.vlm, strides: stridesOf($("other").value) } });
    turn.sides = requests.map((r) => ({ label: stridesName(r.vlm.strides), text: "" }));
  }
  turns.push(turn);
  showAll();
  const mine = new AbortController();
  running = mine;
  $("stop").hidden = false;
  $("send").disabled = true;
  $("status").textContent = "The reply is being written.";
  const sides = turn.sides ?? [turn];
  await Promise.all(
    sides.map((side, i) =>
      stream(requests[i], side, mine.signal).catch((error) => {
        if (error.name === "AbortError") side.stopped = true;
        else side.failed = reason(error);
      }),
    ),
  );
  if (running !== mine) return; // a retry has taken its place
  const good = sides.find((side) => !side.failed && (side.text || !side.stopped));
  turn.lost = !good;
  if (good) turn.text = good.text;
  running = null;
  $("stop").hidden = true;
  $("send").disabled = false;
  question.facts = sides.find((side) => side.facts)?.facts;
  redraw(question);
  redraw(turn);
  showFacts(sides);
  $("status").textContent = sides.map((side) => side.failed ?? side.text).join("\n");
  $("question").focus({ preventScroll: true });
}

function showFacts(sides) {
  const box = $("facts");
  box.replaceChildren();
  const card = cards.find((c) => c.id === $("model").value);
  for (const side of sides.filter((s) => s.usage)) {
    const list = make("dl");
    const row = (name, value) => list.append(make("dt", name), make("dd", value));
    if (side.label) row("Positions by", side.label);
    row("Prompt tokens", side.usage.prompt_tokens.toLocaleString());
    row("of images", side.usage.prompt_tokens_details.image_tokens.toLocaleString());
    row("read from the cache", side.usage.prompt_tokens_details.cached_tokens.toLocaleString());
    row("Reply tokens", side.usage.completion_tokens.toLocaleString());
    row("Positions used", side.facts.positions.toLocaleString());
    row("of the trained range", card.vlm.max_positions.toLocaleString());
    const meter = make("meter", "", { min: 0, max: card.vlm.max_positions, value: side.facts.positions });
    meter.ariaLabel = "Positions used of the trained range";
    box.append(list, meter);
  }
}

function stop() {
  running?.abort();
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || running) return;
  turns.push({ role: "user", text, files });
  files = [];
  $("question").value = "";
  $("problem").textContent = "";
  showFiles();
  reply();
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
document.onkeydown = (event) => {
  if (event.key === "Escape") stop();
};
$("stop").onclick = stop;
$("new").onclick = () => {
  stop();
  turns = [];
  showAll();
  $("facts").replaceChildren();
};
$("save").onclick = () => {
  const kept = turns.map(({ role, text, files: added, sides, failed }) => ({
    role,
    text,
    files: added?.map((f) => f.name),
    sides: sides?.map((side) => ({ label: side.label, text: side.text, failed: side.failed })),
    failed,
  }));
  const blob = new Blob([JSON.stringify(kept, null, 1)], { type: "application/json" });
  const link = make("a", "", { href: URL.createObjectURL(blob), download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
};
$("theme").onclick = () => {
  const root = document.documentElement;
  const chosen = root.style.colorScheme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
};
$("pick").onchange = () => {
  attach([...$("pick").files]); // a copy: the list empties with the field
  $("pick").value = "";
};
$("model").onchange = showModel;
$("key").onchange = loadModels;
const showStride = () => {
  $("stride-shown").textContent = strideAt($("stride").value);
  $("stride").ariaValueText = String(strideAt($("stride").value)); // its own value is the place on the scale
};
$("stride").oninput = () => {
  showStride();
  document.querySelector("input[name=strides][value=v2pe]").checked = true;
};
showStride();
for (let value = 8; value >= 0; value--) {
  $("other").append(make("option", `stride ${strideAt(value)}`, { value: strideAt(value) }));
}
$("other").onchange = () => ($("compare").checked = true);
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("talk").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget || $("talk").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("talk").classList.remove("over");
  attach([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) attach([...event.clipboardData.files]);
});
addEventListener(
  "scroll",
  () => {
    if (endInSight()) following = true;
    else if (scrollY < scrolled) following = false; // somebody did that: a reply that grows only scrolls down
    scrolled = scrollY;
  },
  { passive: true },
);
new ResizeObserver(() => following && showEnd()).observe($("turns")); // a reply grows, a picture is there
loadModels();
