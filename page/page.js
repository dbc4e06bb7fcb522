"use strict";
// Fetches the page again, puts its live parts in the place of the old ones, and
// leaves the tables as the reader had them: sorted, scrolled, with the focus. While
// something in them is selected, they stay, so that it can be copied.
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

function dress() {
  for (const table of document.querySelectorAll("table")) {
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

function replaceParts(next) {
  const focused = document.activeElement?.closest("th");
  const places = [...document.querySelectorAll("table")].map(table => ({
    id: table.id,
    scrolled: table.parentElement.scrollLeft,
    focused: table.contains(focused) ? focused.cellIndex : -1,
  }));
  for (const part of document.querySelectorAll(".live")) part.replaceWith(next.getElementById(part.id));
  dress();
  for (const place of places) {
    const table = document.getElementById(place.id);
    if (!table) continue;
    table.parentElement.scrollLeft = place.scrolled;
    if (place.focused >= 0) table.tHead.rows[0].cells[place.focused].firstChild.focus({preventScroll: true});
  }
}

function selecting() {
  const selection = getSelection();
  return !selection.isCollapsed && [...document.querySelectorAll(".live")].some(part => selection.containsNode(part, true));
}

// Says why what is shown is not of now.
function mark(why) {
  const taken = document.getElementById("taken");
  taken.classList.add("stale");
  if (!taken.textContent.endsWith(why)) taken.append(" · " + why);
}

// The address of what is shown, without the question to Explain: its answer stays as it is.
function address() {
  const asked = new URLSearchParams(location.search), next = new URLSearchParams({format: "html"});
  for (const key of ["find", "from", "scope"]) if (asked.has(key)) next.set(key, asked.get(key));
  return location.pathname + "?" + next;
}

async function fetchPage() {
  const answer = await fetch(address(), {cache: "no-store"});
  if (!answer.ok) throw new Error(answer.status);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

async function refresh() {
  try {
    const next = selecting() ? null : await fetchPage();
    if (next && !selecting()) replaceParts(next);
    else mark("waits while text is selected");
  } catch (e) {
    mark("no answer");
  }
  setTimeout(refresh, every);
}

dress();
setTimeout(refresh, every);
