"use strict";
// Fetches the page again, puts the new main part in the place of the old one,
// and sorts its tables as the reader had them.
const every = 2000, shortest = 60000, longest = 300000; // milliseconds: the plot grows with what is known
const samples = []; // {t: milliseconds, n: refusals so far}
const sorts = {}; // table id: {column, descending}

function sortTable(table) {
  const by = sorts[table.id];
  if (!by) return;
  const value = row => {
    const cell = row.cells[by.column];
    return cell && "v" in cell.dataset ? Number(cell.dataset.v) : cell ? cell.textContent : "";
  };
  const order = (a, b) => a < b ? -1 : a > b ? 1 : 0;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (by.descending ? -1 : 1) * order(value(a), value(b)));
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((th, i) => {
    if (i === by.column) th.setAttribute("aria-sort", by.descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  });
}

function dress(main) {
  for (const table of main.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((th, column) => {
      if (!th.textContent) return;
      const button = document.createElement("button");
      button.textContent = th.textContent;
      button.addEventListener("click", () => {
        const by = sorts[table.id];
        const numeric = th.classList.contains("n");
        sorts[table.id] = {column, descending: by && by.column === column ? !by.descending : numeric};
        sortTable(table);
      });
      th.replaceChildren(button);
    });
    sortTable(table);
  }
}

function plot(main) {
  const now = {t: Number(main.dataset.taken), n: Number(main.dataset.refused)};
  const last = samples[samples.length - 1];
  if (last && now.t <= last.t) return;
  if (last && now.n < last.n) samples.length = 0; // another manager than before
  samples.push(now);
  while (now.t - samples[0].t > longest) samples.shift();
  if (samples.length < 2) return;
  const rates = samples.slice(1).map((s, i) => ({t: s.t, r: 1000 * (s.n - samples[i].n) / (s.t - samples[i].t)}));
  const most = Math.max(1, ...rates.map(s => s.r));
  const span = Math.max(shortest, now.t - rates[0].t);
  const points = rates.map(s => `${300 - 300 * (now.t - s.t) / span},${38 - 36 * s.r / most}`);
  const figure = document.getElementById("plot");
  figure.querySelector("polyline").setAttribute("points", points.join(" "));
  figure.querySelector("output").textContent =
    `${rates[rates.length - 1].r.toFixed(1)} now, ${most.toFixed(1)} at most in ${Math.round(span / 60000)} min`;
  figure.hidden = false;
}

async function refresh() {
  try {
    const answer = await fetch(location.pathname + "?format=html", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    document.querySelector("main").replaceWith(next);
    dress(next);
    plot(next);
  } catch (e) {
    const taken = document.getElementById("taken");
    taken.classList.add("stale");
    if (!taken.textContent.endsWith("no answer")) taken.append(" · no answer");
  }
  setTimeout(refresh, every);
}

dress(document.querySelector("main"));
plot(document.querySelector("main"));
setTimeout(refresh, every);
