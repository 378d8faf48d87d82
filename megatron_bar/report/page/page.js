"use strict";
// What the page does beyond being there: tips, the arrow keys, the layers of the routing map, the lens.
const data = JSON.parse(document.getElementById("data").textContent);
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const digit = new Uint8Array(128);
[...DIGITS].forEach((character, value) => (digit[character.charCodeAt(0)] = value));
const percent = (share, places = 1) => (100 * share).toFixed(places);
const escaped = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const layerName = (slider) => (slider.value === "0" ? `mean over ${slider.max}` : `${slider.value} of ${slider.max}`);

// ---- tips: by hover, focus and touch; Escape hides them
const tip = document.getElementById("tip");
let tipOf = null;

function showTip(element) {
  if (element.classList.contains("t")) tip.innerHTML = tokenTip(element);
  else tip.textContent = element.dataset.tip;
  tipOf?.removeAttribute("aria-describedby");
  element.setAttribute("aria-describedby", "tip");
  tipOf = element;
  tip.hidden = false;
  tip.style.left = tip.style.top = "0"; // measured where nothing squeezes it
  // A token that is broken over two lines has two boxes; the last is where its end is read.
  const boxes = element.getClientRects(), box = boxes[boxes.length - 1] ?? element.getBoundingClientRect();
  const width = document.documentElement.clientWidth, size = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, width - size.width - 8));
  const below = box.bottom + 8 + size.height < innerHeight || box.top < size.height + 8;
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${(below ? box.bottom + 8 : box.top - size.height - 8) + scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
  tipOf?.removeAttribute("aria-describedby");
  tipOf = null;
}

const TIPPED = "[data-tip], .t";
document.addEventListener("pointerover", (event) => {
  const element = event.target.closest?.(TIPPED);
  if (element) showTip(element);
  else if (tipOf && tipOf !== document.activeElement) hideTip();
});
document.addEventListener("click", (event) => {
  const element = event.target.closest?.(TIPPED);
  if (element) showTip(element);
});
document.addEventListener("focusin", (event) => {
  const element = event.target.closest?.(TIPPED);
  if (element) showTip(element);
  else hideTip();
});
document.addEventListener("focusout", hideTip);

// ---- arrow keys: a table, a chart or a text is one stop of the tab key, and the arrows go through what is in it
function makeStop(group) {
  group.querySelector(TIPPED)?.setAttribute("tabindex", "0");
}

function vertically(element, items, down) {
  const from = element.getBoundingClientRect(), middle = (box) => (box.left + box.right) / 2;
  let found = null, least = Infinity;
  for (const item of items) {
    const box = item.getBoundingClientRect();
    const rise = down ? box.top - from.bottom : from.top - box.bottom;
    if (rise < -3) continue;
    const distance = 20 * Math.max(0, rise) + Math.abs(middle(box) - middle(from));
    if (distance < least) [found, least] = [item, distance];
  }
  return found;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  const element = document.activeElement?.closest?.(TIPPED), group = element?.closest("[data-rove]");
  if (!group) return;
  const items = [...group.querySelectorAll(TIPPED)], at = items.indexOf(element);
  const next = {
    ArrowRight: () => items[at + 1],
    ArrowLeft: () => items[at - 1],
    ArrowDown: () => vertically(element, items, true),
    ArrowUp: () => vertically(element, items, false),
    Home: () => items[0],
    End: () => items[items.length - 1],
  }[event.key];
  if (!next) return;
  event.preventDefault();
  const to = next();
  if (!to) return;
  element.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
});

// ---- the routing map
function showRouting(slider) {
  const { experts, layers } = data.routing;
  for (const row of document.querySelectorAll(".heat tbody tr")) {
    const shares = layers[row.dataset.domain];
    const values = experts.map((_, e) =>
      slider.value === "0" ? shares.reduce((sum, layer) => sum + layer[e], 0) / shares.length : shares[slider.value - 1][e],
    );
    const top = Math.max(...values);
    row.querySelectorAll("td").forEach((cell, e) => {
      cell.textContent = percent(values[e]);
      cell.style.setProperty("--v", values[e].toFixed(3));
      cell.classList.toggle("top", values[e] === top);
      cell.dataset.tip = `${row.dataset.domain} → ${experts[e]}: ${percent(values[e])} %\nlayer: ${layerName(slider)}`;
    });
  }
  slider.nextElementSibling.textContent = layerName(slider);
}

// ---- the lens
function weightsOf(text, token, layer) {
  const E = data.lens.experts.length, L = data.lens.layers, found = new Array(E);
  for (let e = 0; e < E; e++) {
    if (layer) found[e] = digit[text.by_layer.charCodeAt((token * L + layer - 1) * E + e)] / 63;
    else {
      const at = 2 * (token * E + e);
      found[e] = (64 * digit[text.weights.charCodeAt(at)] + digit[text.weights.charCodeAt(at + 1)]) / 4095;
    }
  }
  return found;
}

const chosen = () => document.querySelector(".legend [aria-pressed=true]")?.dataset.expert;
const lensLayer = () => +(document.getElementById("lens-layer")?.value ?? 0);

function classOf(weights, only) {
  let winner = 0;
  for (let e = 1; e < weights.length; e++) if (weights[e] > weights[winner]) winner = e;
  const expert = only === undefined ? winner : +only;
  // From an even split to certainty; of one expert alone, from nothing.
  const even = only === undefined ? 1 / weights.length : 0;
  const strength = Math.min(7, Math.max(0, Math.floor((8 * (weights[expert] - even)) / (1 - even || 1))));
  return `t e${expert} a${strength}${only !== undefined && expert !== winner ? " plain" : ""}`;
}

// Line ends, tabs and what is no character by itself (a part of a multi-byte one) would not be seen.
const visible = (token) => (token === "" ? "·" : escaped(token).replace(/\n/g, "⏎\n").replace(/\t/g, "→\t"));

function meanShares(text, layer) {
  const sums = data.lens.experts.map(() => 0);
  text.tokens.forEach((_, token) => weightsOf(text, token, layer).forEach((weight, e) => (sums[e] += weight)));
  return sums.map((sum) => sum / text.tokens.length);
}

function heading(text, layer) {
  const shares = meanShares(text, layer).map((share, e) => `<span>${escaped(data.lens.experts[e])} ${percent(share, 0)} %</span>`);
  return `<b>${escaped(text.domain)}</b>${shares.join("")}`;
}

function drawLens() {
  const domain = document.getElementById("lens-domain").value, layer = lensLayer(), only = chosen(), parts = [];
  data.lens.texts.forEach((text, number) => {
    if (domain && text.domain !== domain) return;
    const tokens = text.tokens.map(
      (token, n) => `<span class="${classOf(weightsOf(text, n, layer), only)}">${visible(token)}</span>`,
    );
    parts.push(
      `<div class="text"><h3>${heading(text, layer)}</h3>` +
        `<div class="tokens" data-rove data-text="${number}" role="group" aria-label="text of ${escaped(text.domain)}">${tokens.join("")}</div></div>`,
    );
  });
  const texts = document.getElementById("texts");
  texts.innerHTML = parts.join("");
  texts.querySelectorAll("[data-rove]").forEach(makeStop);
}

function recolourLens() {
  const layer = lensLayer(), only = chosen();
  for (const box of document.querySelectorAll("#texts .tokens")) {
    const text = data.lens.texts[box.dataset.text];
    Array.from(box.children, (span, n) => (span.className = classOf(weightsOf(text, n, layer), only)));
    box.previousElementSibling.innerHTML = heading(text, layer);
  }
}

function tokenTip(span) {
  const box = span.parentElement, text = data.lens.texts[box.dataset.text], n = [...box.children].indexOf(span), layer = lensLayer();
  const weights = weightsOf(text, n, layer);
  const rows = weights
    .map((weight, e) => ({ weight, e }))
    .sort((a, b) => b.weight - a.weight)
    .map(
      ({ weight, e }) =>
        `<tr><td>${escaped(data.lens.experts[e])}</td><td>${percent(weight)} %</td>` +
        `<td class="bar e${e}"><i style="width:${percent(weight)}%"></i></td></tr>`,
    );
  const slider = document.getElementById("lens-layer");
  const where = slider ? `, layer: ${layerName(slider)}` : "";
  return `<code>${escaped(JSON.stringify(text.tokens[n]))}</code> token ${n + 1}${where}<table>${rows.join("")}</table>`;
}

document.querySelectorAll("table[data-rove], figure[data-rove]").forEach(makeStop);
const routingSlider = document.getElementById("routing-layer");
if (routingSlider) {
  routingSlider.addEventListener("input", () => showRouting(routingSlider));
  showRouting(routingSlider);
}
if (data.lens) {
  const slider = document.getElementById("lens-layer");
  slider?.addEventListener("input", () => {
    slider.nextElementSibling.textContent = layerName(slider);
    recolourLens();
  });
  document.getElementById("lens-domain").addEventListener("change", drawLens);
  for (const button of document.querySelectorAll(".legend button"))
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") === "true";
      document.querySelectorAll(".legend button").forEach((other) => other.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", String(!pressed));
      recolourLens();
    });
  drawLens();
}
// For whoever measures: the first frame with all of it has been drawn.
requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("rendered")));
