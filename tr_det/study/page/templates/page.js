"use strict";

// ---- tables: sorted by a click on a heading, filtered by text and by column ----

const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
};

const compare = (a, b) => {
  const numbers = typeof a === "number" && typeof b === "number";
  return numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
};

const sortBy = (table, column, heading) => {
  // A first click on numbers shows the largest first.
  const body = table.tBodies[0];
  const numeric = heading.classList.contains("number");
  const rows = [...body.rows];
  const first = numeric ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const empty = (row) => numeric && row.cells[column].dataset.sort === undefined;
  rows.sort((a, b) => empty(a) - empty(b) || sign * compare(valueOf(a, column), valueOf(b, column)));
  body.append(...rows);
};

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, column, heading));
  });
}

for (const form of document.querySelectorAll("form.filters")) {
  const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
  const search = form.querySelector("input");
  const selects = [...form.querySelectorAll("select")];
  const output = form.querySelector("output");
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        selects.every((s) => !s.value || row.cells[s.dataset.column].textContent.trim() === s.value);
      row.hidden = !fits;
      shown += fits;
    }
    output.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

// ---- charts: the values at the pointer ----

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

const bent = (value, log) => (log ? Math.log10(value) : value);
const toPixel = (value, [low, high, start, end, log]) => {
  const share = (bent(Math.max(value, log ? low : value), log) - bent(low, log)) / (bent(high, log) - bent(low, log));
  return start + Math.min(1, Math.max(0, share)) * (end - start);
};
const nearest = (sorted, wanted) => {
  let best = 0;
  sorted.forEach((value, place) => {
    if (Math.abs(value - wanted) < Math.abs(sorted[best] - wanted)) best = place;
  });
  return best;
};
const readable = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7) ? value.toExponential(2) : String(value));

const line = (label, value) => {
  const row = document.createElement("div");
  for (const text of [label, value]) {
    const part = document.createElement("span");
    part.textContent = text;
    row.append(part);
  }
  return row;
};

const svgElement = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

for (const plot of document.querySelectorAll("svg[data-hover]")) {
  const { x, y, lines } = JSON.parse(plot.dataset.hover);
  let cursor = null;
  const leave = () => {
    tip.hidden = true;
    cursor?.remove();
    cursor = null;
  };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const pixel = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    const wanted = x[0] + ((pixel - x[2]) / (x[3] - x[2])) * (x[1] - x[0]);
    const found = lines.map(([label, xs, ys]) => {
      const place = nearest(xs, wanted);
      return { label, at: xs[place], value: ys[place] };
    });
    const at = found[0].at;
    leave();
    cursor = svgElement("g", { class: "cursor" });
    const along = toPixel(at, x);
    cursor.append(svgElement("line", { x1: along, x2: along, y1: y[2], y2: y[3] }));
    for (const { value } of found) {
      cursor.append(svgElement("circle", { cx: along, cy: toPixel(value, y), r: 2.6 }));
    }
    plot.append(cursor);
    const head = document.createElement("strong");
    head.textContent = `${plot.dataset.x} ${readable(at)}`;
    tip.replaceChildren(head, ...found.map(({ label, value }) => line(label, readable(value))));
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18}px`;
  });
}
