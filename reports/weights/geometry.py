"""An interactive page of the classes' geometry: neurons in the space of their cosines.

One HTML file that needs no server and no network: every neuron is a point by its
three cosines, kept to 1/127. Unit vectors with cosines a, b, c exist where 1 + 2 a b c
>= a^2 + b^2 + c^2; the page draws that body, the thresholds, and a class's region.
"""

import base64
import html
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from circuitcut.reports.load import Run
from circuitcut.reports.weights.figures import CLASS_LOOKS, units_of
from circuitcut.reports.weights.tables import COSINES
from circuitcut.storage.atomic import write_text

GEOMETRY_FILE = "geometry.html"
_AXES = ("in_out", "gate_out", "gate_in")
_STEPS = 127
"""Steps from 0 to 1 in which a cosine is kept."""


def write_geometry(run: Run) -> Path | None:
    """Write the page into the run directory; None for neurons without gates.

    Raises:
        UserError: When the cosines of the run are missing or damaged.
    """
    weights = run.results["weights"]
    if not weights["gated"]:
        return None
    text = page(run, units_of(run.path, gated=True))
    write_text(run.path / GEOMETRY_FILE, text)
    return run.path / GEOMETRY_FILE


def page(run: Run, units: dict[str, np.ndarray]) -> str:
    """The page's HTML text.

    Args:
        units: `layer`, `class` and the three cosines of every neuron.
    """
    results = run.results
    model = " ".join(filter(None, [results["model"], results["weights"]["revision"]]))
    data = json.dumps(_data(results["weights"], units))
    values = {
        "@MODEL@": html.escape(model),
        "@TAU@": f"{results['weights']['tau']:g}",
        "@CONVENTION@": results["weights"]["convention"],
        "@DATA@": data.replace("<", "\\u003c"),
    }
    text = PAGE
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def _data(weights: dict[str, Any], units: dict[str, np.ndarray]) -> dict[str, Any]:
    looks = list(CLASS_LOOKS)
    coarse = [looks.index(n.removeprefix("atypical ")) for n in weights["classes"]]
    tau, names = weights["tau"], weights["classes"]
    return {
        "tau": tau,
        "axes": [COSINES[name] for name in _AXES],
        "names": names,
        "looks": [
            {"name": name, "colour": colour}
            for name, (colour, _) in CLASS_LOOKS.items()
        ],
        "look_of": coarse,
        "cells": [[cell, looks.index(name)] for cell, name in cells().items()],
        "layer": _encoded(units["layer"].astype("<u2")),
        "class": _encoded(units["class"].astype("u1")),
        **{
            name: _encoded(np.rint(units[name] * _STEPS).astype("i1")) for name in _AXES
        },
    }


def cells() -> dict[tuple[int, int, int], str]:
    """The class, without `atypical`, of every cell that the thresholds make.

    Signs of cos(w_in, w_out), cos(w_gate, w_out) and cos(w_gate, w_in): -1 below -tau,
    1 above tau, else 0; the last one is never negative.
    """
    return {
        (a, b, c): _class_of(a, b)
        for a, b, c in product((-1, 0, 1), (-1, 0, 1), (0, 1))
    }


def _class_of(in_out: int, gate_out: int) -> str:
    if not in_out:
        return "proportional change" if gate_out else "orthogonal output"
    kind = "strengthening" if in_out > 0 else "weakening"
    return kind if gate_out else f"conditional {kind}"


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>circuitcut: cosines of @MODEL@</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 76rem;
       padding: 0 1rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; }
main { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
canvas { border: 1px solid #ccc; cursor: grab; touch-action: none; width: 720px;
         max-width: 100%; height: auto; }
aside { flex: 1 1 20rem; min-width: 18rem; }
fieldset { border: 1px solid #ccc; margin: 0 0 .8rem; padding: .4rem .7rem; }
label { display: block; } .swatch { display: inline-block; width: .8rem; height: .8rem;
       margin: 0 .35rem; vertical-align: -1px; border: 1px solid #888; }
.count { float: right; font-variant-numeric: tabular-nums; }
input[type=range] { width: 100%; } button { margin: .1rem .2rem .1rem 0; }
#told { min-height: 4.5em; } .note { color: #555; font-size: .9rem; }
</style>
</head>
<body>
<h1>Neurons of @MODEL@ by their cosines</h1>
<p class="note">Every neuron is a point: cos(w_in, w_out) to the right, cos(w_gate,
w_out) upwards, and along the third axis cos(w_gate, w_in), which is never negative
after the refactor. Weights: @CONVENTION@; threshold tau @TAU@. Drag to turn, scroll to
zoom, point at a neuron for its numbers.</p>
<main>
<canvas id="view" width="1440" height="1240"></canvas>
<aside>
<fieldset><legend>Layer</legend>
<output id="layer-name"></output>
<input type="range" id="layer" min="-1" value="-1" aria-label="layer">
</fieldset>
<fieldset><legend>Classes (typical and atypical)</legend><div id="classes"></div>
<label>Region of <select id="region"></select></label></fieldset>
<fieldset><legend>View</legend>
<button data-view="front">in-out by gate-out</button>
<button data-view="top">in-out by gate-in</button>
<button data-view="turned">turned</button>
<label><input type="checkbox" id="body" checked> body of all possible cosines</label>
</fieldset>
<fieldset><legend>Neuron</legend><div id="told" aria-live="polite"></div></fieldset>
</aside>
</main>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const $ = id => document.getElementById(id);
const D = JSON.parse($("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const cosine = name => Float32Array.from(new Int8Array(bytes(D[name])), v => v / 127);
const [X, Y, Z] = ["in_out", "gate_out", "gate_in"].map(cosine);
const layerOf = new Uint16Array(bytes(D.layer));
const classOf = new Uint8Array(bytes(D["class"]));
const N = X.length, nLayers = N ? layerOf[N - 1] + 1 : 0;
const first = new Uint32Array(nLayers + 1);
for (let i = 0; i < N; i++) first[layerOf[i] + 1] = i + 1;
const shown = D.looks.map(() => true);
const canvas = $("view"), g = canvas.getContext("2d");
const views = {front: [0, 0], top: [0, -Math.PI / 2], turned: [-0.6, -0.35]};
let [yaw, pitch] = views.turned, zoom = 1, layer = -1, region = -1, at = -1;

function place(x, y, z) {
  const scale = 430 * zoom, w = z - 0.5;
  const right = x * Math.cos(yaw) + w * Math.sin(yaw);
  const near = -x * Math.sin(yaw) + w * Math.cos(yaw);
  const up = y * Math.cos(pitch) - near * Math.sin(pitch);
  return [canvas.width / 2 + scale * right, canvas.height / 2 - scale * up];
}
function line(points, colour, width) {
  g.strokeStyle = colour; g.lineWidth = width; g.beginPath();
  points.forEach((p, i) => g[i ? "lineTo" : "moveTo"](...place(...p)));
  g.stroke();
}
function box(x0, x1, y0, y1, z0, z1, colour, width) {
  for (const z of [z0, z1])
    line([[x0,y0,z], [x1,y0,z], [x1,y1,z], [x0,y1,z], [x0,y0,z]], colour, width);
  for (const x of [x0, x1]) for (const y of [y0, y1])
    line([[x,y,z0], [x,y,z1]], colour, width);
}
function text(words, x, y, z, dx, dy, colour = "#333") {
  const [u, v] = place(x, y, z);
  g.fillStyle = colour; g.textAlign = "center"; g.fillText(words, u + dx, v + dy);
}
const ends = s => s < 0 ? [-1, -D.tau] : s > 0 ? [D.tau, 1] : [-D.tau, D.tau];
function frame() {
  box(-1, 1, -1, 1, 0, 1, "#bbb", 2);
  for (const t of [-D.tau, D.tau]) {
    line([[t,-1,0], [t,1,0]], "#888", 1.5); line([[-1,t,0], [1,t,0]], "#888", 1.5);
  }
  line([[-1,-1,D.tau], [1,-1,D.tau]], "#888", 1.5);
  if ($("body").checked) for (const c of [0, .25, .5, .75, .95]) {
    const ring = [];
    for (let k = 0; k <= 90; k++) {
      const a = Math.cos(k / 45 * Math.PI), s = Math.sin(k / 45 * Math.PI);
      ring.push([a, a * c + s * Math.sqrt(1 - c * c), c]);
    }
    line(ring, "#c9b6e4", 2);
  }
  if (region >= 0) for (const [[a, b, c], look] of D.cells) if (look === region) {
    const [z0, z1] = c ? [D.tau, 1] : [0, D.tau];
    box(...ends(a), ...ends(b), z0, z1, D.looks[region].colour, 4);
  }
  g.font = "26px system-ui, sans-serif";
  for (const s of [-1, -D.tau, 0, D.tau, 1]) {
    text(s, s, -1, 0, 0, 34, "#666");
    if (pitch > -1.2) text(s, -1, s, 0, -40, 8, "#666");
  }
  text(D.axes[0], 0, -1, 0, 0, 72);
  if (pitch > -1.2) {
    const [u, v] = place(-1, 0, 0);
    g.save(); g.translate(u - 112, v); g.rotate(-Math.PI / 2);
    g.fillText(D.axes[1], 0, 0); g.restore();
  }
  if (Math.abs(yaw) + Math.abs(pitch) > .1) {
    const up = pitch > -1.2;
    for (const s of [0, D.tau, 1]) text(s, 1, -1, s, 34, up ? 22 : 8, "#666");
    text(D.axes[2], 1, -1, .5, up ? 150 : 170, up ? 62 : 8);
  }
}
function visible(i) { return shown[D.look_of[classOf[i]]]; }
function span() { return layer < 0 ? [0, N] : [first[layer], first[layer + 1]]; }
function draw() {
  g.clearRect(0, 0, canvas.width, canvas.height);
  frame();
  const [from, to] = span(), size = layer < 0 ? 4 : 6;
  for (let look = D.looks.length - 1; look >= 0; look--) {  // the rarest on top
    if (!shown[look]) continue;
    g.fillStyle = D.looks[look].colour;
    const rare = D.looks[look].name !== "orthogonal output";
    g.globalAlpha = rare ? .85 : layer < 0 ? .35 : .7;
    for (let i = from; i < to; i++) if (D.look_of[classOf[i]] === look) {
      const [u, v] = place(X[i], Y[i], Z[i]), s = rare ? size + 1 : size;
      g.fillRect(u - s / 2, v - s / 2, s, s);
    }
  }
  g.globalAlpha = 1;
  if (at >= 0) {
    const [u, v] = place(X[at], Y[at], Z[at]);
    g.strokeStyle = "#000"; g.lineWidth = 3;
    g.beginPath(); g.arc(u, v, 11, 0, 7); g.stroke();
  }
}
function counts() {
  const n = new Array(D.looks.length).fill(0), [from, to] = span();
  for (let i = from; i < to; i++) n[D.look_of[classOf[i]]]++;
  n.forEach((v, k) => $("n" + k).textContent = v.toLocaleString("en"));
  $("layer-name").textContent = (layer < 0 ? "all layers" : "layer " + layer)
    + ": " + (to - from).toLocaleString("en") + " neurons";
}
function tell() {
  if (at < 0) { $("told").textContent = "Point at a neuron."; return; }
  const unit = layerOf[at] + "." + (at - first[layerOf[at]]);
  $("told").replaceChildren(...[unit + ": " + D.names[classOf[at]],
    ...[X, Y, Z].map((v, k) => D.axes[k] + " = " + v[at].toFixed(2))].map(line => {
      const p = document.createElement("div"); p.textContent = line; return p; }));
}
function nearest(event) {
  const r = canvas.getBoundingClientRect();
  const u = (event.clientX - r.left) * canvas.width / r.width;
  const v = (event.clientY - r.top) * canvas.height / r.height;
  let best = 15 * 15, found = -1;
  for (let [i, to] = span(); i < to; i++) if (visible(i)) {
    const [a, b] = place(X[i], Y[i], Z[i]), d = (a - u) ** 2 + (b - v) ** 2;
    if (d < best) { best = d; found = i; }
  }
  return found;
}
D.looks.forEach((look, k) => {
  const row = document.createElement("label"), check = document.createElement("input");
  check.type = "checkbox"; check.checked = true;
  check.onchange = () => { shown[k] = check.checked; draw(); };
  const swatch = document.createElement("span"), n = document.createElement("span");
  swatch.className = "swatch"; swatch.style.background = look.colour;
  n.className = "count"; n.id = "n" + k;
  row.append(check, swatch, look.name, n);
  $("classes").append(row);
});
for (const [k, name] of [[-1, "no class"], ...D.looks.map((look, k) => [k, look.name])])
  $("region").add(new Option(name, k));
$("region").onchange = e => { region = +e.target.value; draw(); };
$("layer").max = nLayers - 1;
$("layer").oninput = e => {
  layer = +e.target.value; at = -1; counts(); tell(); draw();
};
$("body").onchange = draw;
for (const b of document.querySelectorAll("button"))
  b.onclick = () => { [yaw, pitch] = views[b.dataset.view]; zoom = 1; draw(); };
let held = null;
canvas.onpointerdown = e => {
  held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId);
};
canvas.onpointerup = () => { held = null; };
canvas.onpointermove = e => {
  if (held) {
    yaw += (e.clientX - held[0]) / 200;
    pitch = Math.max(-1.57, Math.min(1.57, pitch - (e.clientY - held[1]) / 200));
    held = [e.clientX, e.clientY];
  } else at = nearest(e);
  tell(); draw();
};
canvas.onwheel = e => {
  e.preventDefault();
  zoom = Math.max(.5, Math.min(8, zoom * Math.exp(-e.deltaY / 600))); draw();
};
// #view=front&region=0&layer=3
const asked = new URLSearchParams(location.hash.slice(1));
if (asked.has("view")) [yaw, pitch] = views[asked.get("view")] || views.turned;
if (asked.has("region")) { region = +asked.get("region"); $("region").value = region; }
if (asked.has("layer")) { layer = +asked.get("layer"); $("layer").value = layer; }
counts(); tell(); draw();
</script>
</body>
</html>
"""
