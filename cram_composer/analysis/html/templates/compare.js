"use strict";
// Optional: read values off a figure, hide groups, sort tables.
const figures = JSON.parse(document.getElementById("plots").textContent);

function along(value, [low, high], log) {
  return log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
}

function lossAt(line, x) {
  const { x: xs, y: ys } = line;
  if (!xs.length || x < xs[0] || x > xs[xs.length - 1]) return null;
  let after = xs.findIndex((one) => one >= x);
  if (after === 0) return ys[0];
  const share = (x - xs[after - 1]) / (xs[after] - xs[after - 1] || 1);
  return ys[after - 1] + share * (ys[after] - ys[after - 1]);
}

function parts(holder, group) {
  return ["line", "band", "dots"].flatMap((kind) => Array.from(holder.querySelectorAll(`[id$="-${kind}-${group}"]`)));
}

function visible(group) {
  const box = document.querySelector(`input[data-group="${group}"]`);
  return !box || box.checked;
}

for (const [name, plot] of Object.entries(figures)) {
  const holder = document.getElementById(`figure-${name}`);
  const svg = holder.querySelector("svg");
  const tip = holder.querySelector(".tip");
  let near = null;

  const mark = (line) => {
    near = line;
    for (const one of plot.lines) {
      for (const part of parts(holder, one.group)) part.style.opacity = line && one !== line ? 0.25 : 1;
    }
  };
  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const [left, top, width, height] = plot.box;
    const share = (place.x - left) / width;
    if (share < 0 || share > 1 || place.y < top || place.y > top + height) { mark(null); tip.hidden = true; return; }
    const [low, high] = plot.x;
    const x = plot.log[0] ? low * (high / low) ** share : low + share * (high - low);
    let best = null;
    for (const line of plot.lines) {
      const loss = visible(line.group) ? lossAt(line, x) : null;
      if (loss === null) continue;
      const away = Math.abs(top + height * (1 - along(loss, plot.y, plot.log[1])) - place.y);
      if (!best || away < best.away) best = { line, loss, away };
    }
    mark(best && best.line);
    tip.hidden = !best;
    if (best) tip.textContent = `${best.line.label}: loss ${best.loss.toFixed(3)} at ${x < 1e6 ? Number(x.toPrecision(4)) : x.toExponential(2)} ${plot.unit}`;
  });
  svg.addEventListener("pointerleave", () => { mark(null); tip.hidden = true; });
}

for (const box of document.querySelectorAll("input[data-group]")) {
  box.addEventListener("change", () => {
    for (const part of parts(document, box.dataset.group)) part.style.display = box.checked ? "" : "none";
  });
}

const SIZES = { k: 1e3, M: 1e6, B: 1e9, T: 1e12 };
function key(cell) {
  const text = cell.textContent.trim();
  const number = /^([+\-−]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([kMBT])?\b/.exec(text);
  return number ? Number(number[1].replaceAll(",", "")) * (SIZES[number[2]] || 1) : text === "-" ? null : text;
}
for (const table of document.querySelectorAll(".sortable table")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const keyed = Array.from(body.rows, (row) => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
