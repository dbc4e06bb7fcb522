"use strict";
// Fetches the page again, puts the new main part in the place of the old one,
// and leaves its tables as the reader had them: sorted, scrolled, with the focus.
const every = 2000; // milliseconds
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

function replaceMain(next) {
  const old = document.querySelector("main");
  const focused = document.activeElement?.closest("th");
  const places = [...old.querySelectorAll("table")].map(table => ({
    id: table.id,
    scrolled: table.parentElement.scrollLeft,
    focused: table.contains(focused) ? focused.cellIndex : -1,
  }));
  old.replaceWith(next);
  dress(next);
  for (const place of places) {
    const table = document.getElementById(place.id);
    if (!table) continue;
    table.parentElement.scrollLeft = place.scrolled;
    if (place.focused >= 0) table.tHead.rows[0].cells[place.focused].firstChild.focus({preventScroll: true});
  }
}

async function refresh() {
  try {
    const answer = await fetch(location.pathname + "?format=html", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
    replaceMain(next);
  } catch (e) {
    const taken = document.getElementById("taken");
    taken.classList.add("stale");
    if (!taken.textContent.endsWith("no answer")) taken.append(" · no answer");
  }
  setTimeout(refresh, every);
}

dress(document.querySelector("main"));
setTimeout(refresh, every);
