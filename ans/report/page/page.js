"use strict";
// The page is complete without this script: it sorts tables, names the values of curves, and orders and filters the gallery.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column].cloneNode(true);
    for (const small of cell.querySelectorAll("small")) small.remove();
    const text = cell.textContent.trim();
    const number = parseFloat(text.replaceAll(",", ""));
    return [Number.isNaN(number) ? Infinity : number, text];
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
      const order = (a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return x[0] === y[0] ? x[1].localeCompare(y[1]) : x[0] - y[0];
      };
      rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.prepend(...rows); // a last row that sums up stays last
    });
  });
}

for (const chart of document.querySelectorAll(".chart")) {
  const lines = [...chart.querySelectorAll("path[data-steps]")].map((line) => ({
    name: line.dataset.name,
    steps: line.dataset.steps.split(" ").map(Number),
    values: line.dataset.values.split(" "),
    points: line.getAttribute("d").slice(1).split("L").map((point) => Number(point.split(" ")[0])),
  }));
  if (lines.length === 0) continue;
  const svg = chart.querySelector("svg");
  const read = chart.querySelector(".read");
  const pointer = document.createElementNS(svg.namespaceURI, "path");
  pointer.setAttribute("class", "pointer");
  svg.append(pointer);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const nearest = (points) => points.reduce((best, at, i) => (Math.abs(at - x) < Math.abs(points[best] - x) ? i : best), 0);
    const found = lines.map((line) => ({ ...line, at: nearest(line.points) }));
    pointer.setAttribute("d", `M${found[0].points[found[0].at]} 10V166`);
    read.textContent = `step ${found[0].steps[found[0].at]}: ` + found.map((of) => `${of.name} ${of.values[of.at]}`).join(", ");
  });
  svg.addEventListener("pointerleave", () => {
    pointer.removeAttribute("d");
    read.textContent = "";
  });
}

const gallery = document.getElementById("gallery-cards");
if (gallery) {
  const sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const told = document.getElementById("told");
  const cards = [...gallery.children];

  const arrange = () => {
    const [key, direction] = sort.value.split(" ");
    const sign = direction === "down" ? -1 : 1;
    const value = (card) => Number(card.dataset[key]);
    cards.sort((a, b) => sign * (value(a) - value(b)) || a.dataset.place - b.dataset.place);
    let shown = 0;
    for (const card of cards) {
      card.hidden = filter.value !== "" && card.dataset.reason !== filter.value && card.dataset.kind !== filter.value;
      shown += card.hidden ? 0 : 1;
      gallery.append(card);
    }
    told.textContent = `${shown} of ${cards.length} shown, ${sort.selectedOptions[0].text}`;
  };
  sort.addEventListener("change", arrange);
  filter.addEventListener("change", arrange);
  document.querySelector(".controls").hidden = false;
  arrange();

  for (const link of document.querySelectorAll("a[data-reason]")) {
    link.addEventListener("click", () => {
      filter.value = link.dataset.reason;
      arrange();
    });
  }
}
