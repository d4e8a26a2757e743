"use strict";
// Without this script the page is whole; with it tables sort and filter, and the contents show where one is.
const said = document.getElementById("said"); // read out by screen readers

const make = (tag, properties, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.querySelectorAll("th")].filter((head) => head.querySelector("button"));
  const value = (row, at) => {
    const raw = row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
    return raw === "" || raw === "–" ? null : isNaN(raw) ? raw : Number(raw);
  };
  for (const head of heads) {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const at = head.cellIndex;
      const rows = [...body.rows].map((row) => [value(row, at), row]);
      const words = rows.some(([raw]) => typeof raw === "string"); // words from A, numbers from the largest
      const order = { none: words ? "ascending" : "descending", ascending: "descending", descending: "ascending" };
      const next = order[head.getAttribute("aria-sort")];
      const sign = next === "ascending" ? 1 : -1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const both = typeof a === "number" && typeof b === "number";
        return sign * (both ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
      });
      body.append(...rows.map(([, row]) => row));
      said.textContent = `Sorted by ${button.textContent}, ${next}`;
    });
  }
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 8) return;
  const tight = (text) => text.toLowerCase().replace(/,\s+/g, ",");
  const about = new Map(
    rows.map((row) => [row, tight([...row.querySelectorAll("th, .key, .flag")].map((e) => e.textContent).join(" "))]),
  );
  const judged = (row) => [...row.cells].map((cell) => cell.querySelector("[data-k]")?.dataset.k);
  const verdicts = new Set(rows.flatMap(judged).filter(Boolean));
  const text = make("input", { type: "search", autocomplete: "off", spellcheck: false });
  const pick = (ariaLabel, options) =>
    make("select", { ariaLabel }, ...options.map(([words, value]) => make("option", { value }, words)));
  const verdict = pick("Verdict", [["any", ""], ...[...verdicts].sort().map((word) => [word, word])]);
  const heads = [...table.tHead.rows[0].cells].filter((head) => rows.some((row) => judged(row)[head.cellIndex]));
  const column = pick("in column", [["any column", -1], ...heads.map((head) => [head.textContent.trim(), head.cellIndex])]);
  const count = make("output", {});
  const apply = () => {
    const words = tight(text.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const marks = Number(column.value) < 0 ? judged(row) : [judged(row)[column.value]];
      row.hidden =
        !words.every((word) => about.get(row).includes(word)) || (verdict.value && !marks.includes(verdict.value));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    bar.classList.toggle("on", shown < rows.length);
  };
  const bar = make("div", { className: "filter", role: "group" }, make("label", {}, "Filter ", text));
  if (verdicts.size) bar.append(make("label", {}, "Verdict ", verdict));
  if (verdicts.size && heads.length > 1) bar.append(make("label", {}, "in ", column));
  bar.append(count);
  const box = table.closest(".scroll");
  const named = document.getElementById(box.getAttribute("aria-labelledby"))?.textContent;
  bar.setAttribute("aria-label", `Filter: ${box.getAttribute("aria-label") ?? named}`);
  bar.addEventListener("input", apply);
  box.before(bar);
  apply();
}

for (const table of document.querySelectorAll("table.sortable")) {
  sortable(table);
  filterable(table);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.from).textContent);
    button.textContent = said.textContent = "copied";
  });
}

// Links may lead into what is folded; most browsers open it by themselves.
const reveal = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target?.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();

// What does not scroll needs no stop of the Tab key.
const stops = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls = target.scrollWidth > target.clientWidth + 1 || target.scrollHeight > target.clientHeight + 1;
    if (scrolls) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".scroll, figure > div, pre")) stops.observe(box);

const nav = document.getElementById("contents");
const here = new IntersectionObserver(
  (entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      for (const link of nav.querySelectorAll("a")) {
        if (link.hash !== `#${target.id}`) link.removeAttribute("aria-current");
        else {
          link.setAttribute("aria-current", "location");
          nav.scrollTo({ left: link.offsetLeft - nav.clientWidth / 2 });
        }
      }
    }
  },
  { rootMargin: "-15% 0px -80% 0px" },
);
for (const section of document.querySelectorAll("section[id]")) here.observe(section);
