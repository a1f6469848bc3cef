"use strict";
// What the pages of runs and samples share. Names, prompts and replies can hold anything: they become text, never markup.

const $ = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const address = (path, query = {}) => {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const words = new URLSearchParams(kept).toString();
  return words ? `${path}?${words}` : path;
};

class Refused extends Error {}

async function ask(path, query, signal) {
  const answer = await fetch(address(path, query), { signal });
  const body = await answer.json();
  $("key-line").hidden = answer.status !== 401;
  if (!answer.ok) throw new Refused(body.error.message);
  return body;
}

const points = (value) => (value === null ? "–" : String(Math.round(value * 1000) / 1000));

function short(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds % 60)).padStart(2, "0")} s`;
  if (seconds < 86400 * 2) return `${Math.floor(seconds / 3600)} h ${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.round(seconds / 86400)} days`;
}

const verdict = (score) => (score === null ? "unscored" : score >= 1 ? "right" : score <= 0 ? "wrong" : "partial");

function meter(done, total, label) {
  return el("progress", { max: total || 1, value: total ? Math.min(done, total) : null, "aria-label": label });
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const chosen = root.style.colorScheme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});

$("key-line").addEventListener("submit", (event) => {
  event.preventDefault();
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `vlm-key=${encodeURIComponent($("key").value)}; path=/; SameSite=Strict${secure}`;
  location.reload();
});

ask("/vlm/about").then(({ chat }) => { $("chat").hidden = !chat; }, () => {});
