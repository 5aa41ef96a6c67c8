// Sorting tables by a column and nothing else; the page is whole without it.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th:not(.plot)").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = (row) => row.cells[head.cellIndex]?.dataset.value ?? row.cells[head.cellIndex]?.textContent.trim() ?? "";
      const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const [m, n] = [number(x), number(y)];
        if (m !== null && n !== null) return m - n;
        if (m !== null || n !== null) return m !== null ? -1 : 1;
        return x.localeCompare(y, undefined, { numeric: true });
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (rising ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    });
  });
}
