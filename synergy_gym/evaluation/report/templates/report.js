"use strict";

// -- tables: sort by a click on a head, filter by a part of a row's text --

function sortTable(head) {
  const table = head.closest("table");
  const column = [...head.parentNode.children].indexOf(head);
  const first = table.classList.contains("numbers") && column > 0 ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const each of head.parentNode.children) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row.cells[column].dataset.v, row]);
  rows.sort((a, b) => compare(a[0], b[0], order === "ascending" ? 1 : -1));
  body.append(...rows.map((pair) => pair[1]));
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // empty cells stay below
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en") : difference);
}

function filterTable(input) {
  const box = input.closest(".tablebox");
  const rows = [...box.querySelector("tbody").rows];
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  box.querySelector("output").textContent = words.length ? `${shown} of ${rows.length}` : "";
}

// -- charts: colour the lines of chosen policies --

function chosen(part) {
  return [...part.querySelectorAll(".chips [aria-pressed=true]")];
}

function toggle(chip) {
  const part = chip.closest(".part");
  const colours = Number(part.dataset.colours);
  const pressed = chosen(part);
  if (chip.getAttribute("aria-pressed") === "true") {
    paint(part, chip, null);
    return;
  }
  if (pressed.length >= colours) paint(part, pressed[0], null);
  const used = chosen(part).map((each) => each.style.getPropertyValue("--c").trim());
  const free = [...Array(colours).keys()].map((i) => `var(--s${i + 1})`);
  paint(part, chip, free.find((colour) => !used.includes(colour)));
}

function paint(part, chip, colour) {
  chip.setAttribute("aria-pressed", String(colour !== null));
  chip.style.setProperty("--c", colour ?? "");
  for (const line of part.querySelectorAll(".series")) {
    if (line.dataset.p !== chip.dataset.p) continue;
    line.classList.toggle("on", colour !== null);
    line.style.setProperty("--c", colour ?? "");
    if (colour !== null) line.parentNode.append(line); // above the others
  }
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("thead th");
  const chip = event.target.closest(".chips button");
  if (head) sortTable(head);
  if (chip) toggle(chip);
});
document.addEventListener("input", (event) => {
  if (event.target.closest(".filter")) filterTable(event.target);
});
