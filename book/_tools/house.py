"""The house drawn from its own imports: which room of the package uses which.

    python book/_tools/house.py

Writes ``book/_static/house.svg``, which the page on the architecture shows.  Rooms
stand in the order of `ROOMS`, each below those it may use: a dot is an import, and all
dots lie on one side of the diagonal.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "book" / "_static" / "house.svg"

# From the ground up: a room imports from rooms above it in this list, never from one
# below.  A room is a module, or a folder of them.
ROOMS = (
    "checks", "options", "hashes", "order", "budget", "adagrad", "replay", "graph",
    "ranking", "sampled_softmax", "metrics", "curves", "spec", "bits", "kernels",
    "layouts", "embedding", "method", "baselines", "low_precision", "mixed_dimension",
    "weight_sharing", "hybrids", "catalog", "data", "models", "training",
    "objectives", "advice", "serving", "book", "lab", "cli", "__main__",
)  # fmt: skip

# What each group of rooms does, in the book's words.
GROUPS = {
    "helps": ("checks", "curves"),
    "knows": ("spec", "spec"),
    "stores, reads fast": ("bits", "layouts"),
    "the contract": ("embedding", "baselines"),
    "learns": ("low_precision", "hybrids"),
    "lists": ("catalog", "catalog"),
    "tasks": ("data", "objectives"),
    "advises": ("advice", "advice"),
    "goes out": ("serving", "serving"),
    "measures": ("book", "lab"),
    "is called": ("cli", "__main__"),
}


def list_modules(package: Path = ROOT / "survey_code") -> dict[str, Path]:
    """Every module of the package by its dotted name below it."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def read_imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports when it runs, below the package.

    What stands under ``if TYPE_CHECKING`` is for type checkers only.
    """
    for node in walk_at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "survey_code":
                yield from (name.name for name in node.names)
            elif node.module.startswith("survey_code."):
                yield node.module.removeprefix("survey_code.")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("survey_code."):
                    yield name.name.removeprefix("survey_code.")


def walk_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for type checkers."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk_at_run_time(child)


def count_imports() -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, path in list_modules().items():
        room = name.split(".")[0]
        for target in read_imports(path):
            if room and (other := target.split(".")[0]) != room:
                counts[room, other] += 1
    return counts


SIZE, LEFT, TOP = 17, 208, 118


def draw() -> str:
    """The matrix of imports as SVG: a row for each room, a dot for each it uses."""
    counts = count_imports()
    side = SIZE * len(ROOMS)
    width, height = LEFT + side + 62, TOP + side + 12  # the last name leans out
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="11.5">',
        "<title>Which room of the package imports which</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for place, room in enumerate(ROOMS):
        at = SIZE * place + SIZE / 2
        lines += [
            f'<text x="{LEFT - 8}" y="{TOP + at + 4:g}" text-anchor="end" '
            f'fill="#1a1a1a">{room}</text>',
            f'<text transform="translate({LEFT + at + 4:g} {TOP - 8}) rotate(-60)" '
            f'fill="#1a1a1a">{room}</text>',
            f'<rect x="{LEFT + SIZE * place}" y="{TOP + SIZE * place}" '
            f'width="{SIZE}" height="{SIZE}" fill="#d9d9d9"/>',
        ]
    lines += draw_groups()
    for (room, other), count in sorted(counts.items()):
        x = LEFT + SIZE * ROOMS.index(other) + SIZE / 2
        y = TOP + SIZE * ROOMS.index(room) + SIZE / 2
        radius = min(2.5 + count**0.5 / 2, SIZE / 2 - 1)
        lines.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:.2f}" fill="#0072b2">'
            f"<title>{room} uses {other}: {count} imports</title></circle>"
        )
    return "\n".join([*lines, "</svg>", ""])


def draw_groups() -> list[str]:
    """A line below each group of rooms, and its name."""
    lines = []
    for name, (first, last) in GROUPS.items():
        start, end = ROOMS.index(first), ROOMS.index(last) + 1
        middle, below = TOP + SIZE * (start + end) / 2, TOP + SIZE * end
        lines += [
            f'<text x="4" y="{middle + 4:g}" fill="#555555">{name}</text>',
            f'<path d="M4 {below}H{LEFT + SIZE * len(ROOMS)}" stroke="#cccccc"/>',
        ]
    return lines


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
