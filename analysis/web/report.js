
// What the report does beside drawing: it follows the system's light or dark, and prints on white paper.
const board = new Board(document.getElementById("board"), window.Plotly);
const night = matchMedia("(prefers-color-scheme: dark)");
board.show(JSON.parse(document.getElementById("runs").textContent));
board.dark(night.matches);
night.addEventListener("change", () => board.dark(night.matches));
addEventListener("beforeprint", () => { document.body.classList.add("printing"); board.dark(false); });
addEventListener("afterprint", () => { document.body.classList.remove("printing"); board.dark(night.matches); });
