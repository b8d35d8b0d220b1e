"use strict";
// Functions that every part of the page uses. All text reaches the page as text nodes, never as HTML.

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}

function add(parent, ...children) {
  for (const child of children) if (child) parent.appendChild(child);
  return parent;
}

function embeddedData(id) {
  const node = document.getElementById(id);
  return node ? JSON.parse(node.textContent) : null;
}

function numberText(value, signed) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size >= 1000 ? value.toFixed(0) : size !== 0 && size < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));
  return (signed && value > 0 ? "+" : "") + text.replace("-", "−");
}

function addOptions(select, entries) {
  for (const [value, text] of entries) {
    const option = make("option", "", text);
    option.value = value;
    select.appendChild(option);
  }
}

// Tables sort by a click on a header: numbers first from large to small, text first from a to z, empty cells last.
function sortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.v;
    return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
  };
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const rows = [...table.tBodies[0].rows];
      const text = rows.every((row) => typeof value(row, column) !== "number");
      const was = header.getAttribute("aria-sort");
      const ascending = was ? was === "descending" : text;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((first, second) => {
        const a = value(first, column), b = value(second, column);
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
        return ascending ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);

// The column of beta stays beside that of the method while a wide table scrolls.
const firstColumns = new ResizeObserver((changed) => {
  for (const { target } of changed) target.closest("table").style.setProperty("--first", `${target.getBoundingClientRect().width}px`);
});
document.querySelectorAll(".with-beta th:first-child").forEach((header) => firstColumns.observe(header));
