// Short cells of tables stay on one line; long ones, as lists of methods, may break.
document.addEventListener("DOMContentLoaded", () => {
  for (const cell of document.querySelectorAll("table.dataframe td, table.dataframe th"))
    if (cell.textContent.trim().length < 26) cell.style.whiteSpace = "nowrap";
});
