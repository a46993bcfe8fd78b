"""The book's pictures: the trade-off at equal bytes, and the taxonomy."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from survey_code.book import COLORS, MARKERS
from survey_code.catalog import TAXONOMY, Method, get_method
from survey_code.lab.results import Result, summarize

METRIC_NAMES = {
    "auc": "test AUC",
    "log_loss": "test log-loss",
    "recall@20": "test Recall@20",
    "ndcg@20": "test NDCG@20",
}


def plot_tradeoff(
    results: Iterable[Result], metric: str = "auc", ax: Axes | None = None
) -> Axes:
    """Draw accuracy against the compression ratio that was reached.

    One marked line per method with its name at its end and error bars over the
    seeds; the uncompressed table as a dashed line inside the band of one
    deviation of its seeds, so that "no loss" is "inside the band".

    Parameters
    ----------
    results : iterable of Result
        Those of the key ``full`` give the band.
    metric : str
        Key of `Result.test`.
    ax : Axes, optional

    Returns
    -------
    Axes
        Each line's `get_xdata()` and `get_ydata()` are what the table says.
    """
    table = summarize(results, metric)
    axes = plt.gca() if ax is None else ax
    full = table[table["key"] == "full"]
    for row in full.itertuples():
        axes.axhspan(
            row.mean - row.deviation, row.mean + row.deviation, color="0.85", zorder=0
        )
        axes.axhline(row.mean, color="0.4", linestyle="--", linewidth=1, label="full")
    ends = []
    lines = table[table["key"] != "full"].groupby("key", sort=False)
    for (key, rows), color, marker in zip(lines, cycle(COLORS), cycle(MARKERS)):
        rows = rows.sort_values("reached")
        axes.errorbar(
            rows["reached"], rows["mean"], yerr=rows["deviation"], label=key,
            color=color, marker=marker, capsize=2, elinewidth=0.8,
        )  # fmt: skip
        last = rows.iloc[-1]
        ends.append((last["reached"], last["mean"], get_method(key).title, color))
    axes.set_xscale("log", base=2)
    show_ratios(axes, table.loc[table["key"] != "full", "reached"])
    axes.set_xlabel("compression ratio (full bytes / stored bytes)")
    axes.set_ylabel(METRIC_NAMES.get(metric, metric))
    name_lines(axes, ends)
    for row in full.itertuples():
        axes.annotate(
            "uncompressed", (0.01, row.mean), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", color="0.35", fontsize=7.5,
        )  # fmt: skip
    return axes


def cycle(values: tuple[str, ...]) -> Iterable[str]:
    """The values again and again."""
    while True:
        yield from values


def show_ratios(axes: Axes, reached: Any) -> None:
    """Label a log2 axis 2x, 4x, 8x ... over the ratios that occur."""
    low = np.floor(np.log2(min(reached)))
    high = np.ceil(np.log2(max(reached)))
    ticks = 2.0 ** np.arange(low, high + 1)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()


def name_lines(
    axes: Axes, ends: list[tuple[float, float, str, str]], gap: float = 0.055
) -> None:
    """Write each line's name right of the axes, at its end's height.

    Names closer than `gap` of the axes' height are pushed apart; a thin line
    leads from each name to its line's end.
    """
    low, high = axes.get_ylim()
    heights = np.array([(y - low) / (high - low) for _, y, _, _ in ends])
    order = np.argsort(heights, kind="stable")
    placed = heights.copy()
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    # Move the whole stack down where it grew out of the picture.
    placed -= max(0.0, placed.max() - 1.0) if len(placed) else 0.0
    for (x, y, name, color), height in zip(ends, placed):
        axes.annotate(
            name, (x, y), xycoords="data", xytext=(1.03, height),
            textcoords="axes fraction", color=color, fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.5},
        )  # fmt: skip


def plot_taxonomy(catalogue: Iterable[Method], ax: Axes | None = None) -> Axes:
    """Draw the survey's categories and families, and the methods implemented here.

    Parameters
    ----------
    catalogue : iterable of Method
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    axes = plt.gca() if ax is None else ax
    catalogue = list(catalogue)
    families = [
        (category, family)
        for category, names in TAXONOMY.items()
        if category != "baseline"
        for family in names
    ]
    height = len(families)
    colors = dict(zip(list(TAXONOMY)[1:], COLORS))
    box = {"boxstyle": "round,pad=0.35", "fc": "white"}
    root = (0.0, (height - 1) / 2)
    for category, color in colors.items():
        rows = [k for k, (c, _) in enumerate(families) if c == category]
        middle = height - 1 - float(np.mean(rows))
        connect(axes, (root[0] + 0.1, root[1]), (0.75, middle), color)
        axes.text(
            0.75, middle, category, va="center", color=color, weight="bold",
            bbox={**box, "ec": color},
        )  # fmt: skip
        for k in rows:
            level = height - 1 - k
            connect(axes, (1.35, middle), (1.75, level), color)
            members = [m for m in catalogue if m.family == families[k][1]]
            axes.text(1.78, level, families[k][1], va="center", color="black")
            named = ", ".join(m.title for m in members) or "(chapter to come)"
            axes.text(2.75, level, named, va="center", fontsize=7.5, color="0.35")
    axes.text(*root, "embedding\ntable", va="center", ha="center", bbox=box)
    axes.set_xlim(-0.3, 5.2)
    axes.set_ylim(-0.6, height - 0.4)
    axes.axis("off")
    return axes


def connect(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str
) -> None:
    """A thin curve from one box to the next."""
    share = np.linspace(0, 1, 30)
    smooth = share**2 * (3 - 2 * share)
    axes.plot(
        start[0] + share * (end[0] - start[0]),
        start[1] + smooth * (end[1] - start[1]),
        color=color,
        linewidth=1,
        alpha=0.6,
        zorder=0,
    )
