"""The book's pictures: accuracy at equal bytes, and the taxonomy."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import cycle, pairwise

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from survey_code.book import COLORS, MARKERS
from survey_code.catalog import CATALOG, TAXONOMY, Method, methods
from survey_code.curves import Point
from survey_code.lab.comparison import (
    Curves,
    compare,
    find_point,
    main_metric,
    read_within,
)
from survey_code.lab.results import Result, summarize
from survey_code.lab.standing import Standing

CATALOG_KEYS = frozenset(method.key for method in CATALOG)
METRIC_NAMES = {
    "auc": "test AUC",
    "log_loss": "test log-loss",
    "recall@20": "test Recall@20",
    "ndcg@20": "test NDCG@20",
}


def plot_tradeoff(
    results: Iterable[Result],
    metric: str | None = None,
    ax: Axes | None = None,
    named: Sequence[str] | None = None,
) -> Axes:
    """Draw accuracy against the compression ratio that was reached.

    One marked line per method with its key at its end and error bars over the
    seeds (see `choose_styles`); the uncompressed table as a dashed line in the band
    of one deviation of its seeds.

    Parameters
    ----------
    results : iterable of Result
        Those of the key ``full`` give the band.  A key that is not in the
        catalogue is a line of its own name.
    metric : str, optional
        Key of `Result.test`; by default `main_metric`.
    ax : Axes, optional
    named : sequence of str, optional
        The lines to colour and name; those of all others are thin and grey, to show
        where the field stands.  By default all are named.

    Returns
    -------
    Axes
        The data of each line are what the table says.
    """
    results = list(results)
    metric = metric or main_metric(results)
    axes = plt.gca() if ax is None else ax
    return draw_tradeoff(summarize(results, metric), metric, axes, named)


def draw_tradeoff(
    table: pd.DataFrame, metric: str, axes: Axes, named: Sequence[str] | None = None
) -> Axes:
    """`plot_tradeoff` of a table of means: ``key``, ``reached``, ``mean`` and
    ``deviation``, a row for each point.
    """
    bands = list(table[table["key"] == "full"].itertuples())
    for row in bands:
        axes.axhspan(*find_band(row.mean, row.deviation), color="0.85", zorder=0)
        axes.axhline(row.mean, color="0.4", linestyle="--", linewidth=1, label="full")
    lines = table[table["key"] != "full"]
    if named is not None:
        apart = lines["key"].isin(list(named))
        draw_field(axes, lines[~apart])
        lines = lines[apart]
    starts, ends = draw_lines(axes, lines)
    show_ratios(axes, list(lines["reached"]))
    axes.set_ylabel(METRIC_NAMES.get(metric, metric))
    name_lines(axes, ends)
    for row in bands:
        name_full(axes, row.mean, starts, [y for _, y, _, _ in ends])
    return axes


def name_full(
    axes: Axes, mean: float, starts: Sequence[float], ends: Sequence[float]
) -> None:
    """Name the uncompressed table on the side where the lines are farther from it."""
    left, right = (
        min((abs(y - mean) for y in heights), default=0.0) for heights in (starts, ends)
    )
    place, side = (0.01, "left") if left >= right else (0.99, "right")
    axes.annotate(
        "uncompressed", (place, mean), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", ha=side, color="0.35",
        fontsize=7.5,
    )  # fmt: skip


def find_band(mean: float, deviation: float) -> tuple[float, float]:
    """One deviation on each side of a mean; of a single seed, the mean alone."""
    spread = 0.0 if np.isnan(deviation) else deviation
    return mean - spread, mean + spread


def draw_lines(
    axes: Axes, table: pd.DataFrame
) -> tuple[list[float], list[tuple[float, float, str, str]]]:
    """A marked line for each key of a summary: where they start, and where they end,
    with name and colour.
    """
    starts, ends = [], []
    lines = table.groupby("key", sort=False)
    styles = choose_styles([str(key) for key, _ in lines])
    for key, rows in lines:
        color, marker, line = styles[str(key)]
        rows = rows.sort_values("reached", kind="stable")
        axes.errorbar(
            rows["reached"], rows["mean"], yerr=rows["deviation"], label=str(key),
            color=color, marker=marker, linestyle=line, capsize=2, elinewidth=0.8,
        )  # fmt: skip
        starts.append(float(rows["mean"].iloc[0]))
        last = rows.iloc[-1]
        ends.append((float(last["reached"]), float(last["mean"]), str(key), color))
    return starts, ends


def draw_field(axes: Axes, table: pd.DataFrame) -> None:
    """Thin grey lines without names, behind those that a picture is about."""
    for _, rows in table.groupby("key", sort=False):
        rows = rows.sort_values("reached", kind="stable")
        axes.plot(
            rows["reached"], rows["mean"], color="0.85", marker=".", markersize=3,
            linewidth=0.7, zorder=0.5,
        )  # fmt: skip


def plot_marks(
    results: Iterable[Result],
    ratio: float = 10,
    metric: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw one mark for each method at a ratio, the best one highest.

    Its family gives a mark colour and shape; the uncompressed table is the band of
    one deviation of its seeds.

    Parameters
    ----------
    results : iterable of Result
        Those of the key ``full`` give the band.
    ratio, metric
        As for `compare`, which says what is drawn: hollow where the ratio itself was
        not reached, and the mark is read off between two others.
    ax : Axes, optional

    Returns
    -------
    Axes
        Each container is one mark, from the smallest mean up.
    """
    results = list(results)
    metric = metric or main_metric(results)
    axes = plt.gca() if ax is None else ax
    table = compare(results, ratio, metric)
    families = {method.key: method.family for method in methods()}
    order = list(dict.fromkeys(families.values()))  # the baseline comes first
    for row in table.drop("full", errors="ignore").iloc[::-1].itertuples():
        family = families.get(row.Index.split(",")[0], "other")
        at = order.index(family) if family in order else len(order)
        axes.errorbar(
            row.mean, row.Index, xerr=row.deviation, label=family, linestyle="none",
            marker=MARKERS[(at - 1) % len(MARKERS)] if at else "|",
            color=COLORS[(at - 1) % len(COLORS)] if at else "0.4",
            markerfacecolor="none" if row.read_off else None,
        )  # fmt: skip
    for full in table.loc[table.index == "full"].itertuples():
        axes.axvspan(*find_band(full.mean, full.deviation), color="0.85", zorder=0)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.margins(y=0.01)
    shown = dict(zip(*reversed(axes.get_legend_handles_labels())))
    named = [family for family in (*order, "other") if family in shown]
    axes.legend([shown[family] for family in named], named, fontsize=7.5)
    axes.set_xlabel(f"{METRIC_NAMES.get(metric, metric)} at {ratio:g}x")
    return axes


def plot_places(
    standings: Sequence[Standing],
    curves: Curves,
    named: Sequence[str],
    metric: str,
    ax: Axes,
) -> Axes:
    """Draw where a method stands at each ratio: a row of marks, one a method, by what
    it loses against the full table.

    Parameters
    ----------
    standings, curves, metric, ax
        As of `place_among` and `draw_tradeoff`.
    named : sequence of str
        The methods that are marked in colour, itself first; all others are grey.

    Returns
    -------
    Axes
        Its rows are labelled by the ratio on the left, and by the rank on the right.
    """
    full = find_point(curves, "full", 1.0)
    base = 0.0 if full is None else full.mean
    # As in a trade-off of the same.
    styles = choose_styles([name for name in curves if name in named])
    for row, one in enumerate(standings):
        found = {name: read_own(curves, name, one.ratio) for name in curves}
        means = {n: p.mean - base for n, p in found.items() if p and n != "full"}
        field = [mean for name, mean in means.items() if name not in named]
        ax.plot(field, [row] * len(field), "|", color="0.65", markersize=9)
        for name in reversed(named):  # itself on top
            if name in means:
                color, mark, _ = styles[name]
                ax.plot(
                    means[name], row, mark, color=color, markersize=7,
                    label=name if row == 0 else None,
                )  # fmt: skip
        place = "cannot" if one.how == "cannot" else f"{one.rank:g} of {one.rivals + 1}"
        ax.text(1.02, row, place, transform=ax.get_yaxis_transform(), va="center")
    if full is not None:
        ax.axvline(0.0, color="0.4", linestyle="--", linewidth=1)
    words = METRIC_NAMES.get(metric, metric)
    ax.set_xlabel(words if full is None else f"{words}, less the full table's")
    ax.set_yticks(range(len(standings)), [f"{one.ratio:g}x" for one in standings])
    ax.set_ylim(len(standings) - 0.4, -0.6)
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)
    return ax


def read_own(curves: Curves, name: str, ratio: float) -> Point | None:
    """A method's own point within a budget, if it has one."""
    return read_within({name: curves[name]}, name, ratio)


def choose_styles(keys: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Each key's colour, marker and line, the same in every picture of a family.

    Methods of the family that has the most lines are coloured in the order of the
    catalogue, then keys that it does not know; the rivals of other families are
    grey.  Where no family has three lines, all are coloured.  Where the colours
    are used up they come again, with broken lines.  Methods of plug-ins take what is
    free.
    """
    families = {method.key: method.family for method in methods()}
    counts = Counter(families[key] for key in keys if key in families)
    ((main, most),) = counts.most_common(1) or [("", 0)]
    coloured = [key for key in families if families[key] == main]
    coloured += [key for key in keys if key not in families]
    if most < 3:
        coloured = list(keys)
    grey = [key for key in keys if key not in coloured]
    styles = {key: ("0.55", mark, "-") for key, mark in zip(grey, cycle(MARKERS))}
    for k, (key, mark) in enumerate(zip(coloured, cycle(MARKERS))):
        line = "-" if k < len(COLORS) else "-."
        styles[key] = (COLORS[k % len(COLORS)], mark, line)
    # A plug-in's methods take colours that no other line has.
    own = [key for key in keys if key in families and key not in CATALOG_KEYS]
    used = {styles[key][0] for key in keys if key not in own}
    free = [color for color in COLORS if color not in used] or list(COLORS)
    for key, color in zip(own, cycle(free)):
        styles[key] = (color, styles[key][1], "-")
    return styles


def show_ratios(axes: Axes, reached: Sequence[float]) -> None:
    """A log2 axis labelled 2x, 4x, 8x ... over the ratios that occur."""
    axes.set_xscale("log", base=2)
    axes.set_xlabel("compression ratio (full bytes / stored bytes)")
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


def list_titles(catalogue: Sequence[Method], family: str) -> str:
    """The titles of a family's methods, in lines."""
    titles = ", ".join(m.title for m in catalogue if m.family == family)
    words = titles or "not in the catalogue yet"
    return textwrap.fill(words, 50, break_on_hyphens=False)


# What each category makes fewer of.
SIDES = {
    "low precision": "bits per weight",
    "mixed dimension": "weights per embedding",
    "weight sharing": "distinct weights",
}


def plot_taxonomy(catalogue: Iterable[Method], ax: Axes | None = None) -> Axes:
    """Draw the table as a block of n x d x bits, and which family shrinks which side.

    Each category has the colour of the side that it shortens: low precision the
    bits per weight, mixed dimension the weights per embedding, weight sharing the
    distinct weights.  Beside each family stand its methods in the catalogue.

    Parameters
    ----------
    catalogue : iterable of Method
    ax : Axes, optional
        By default a new figure 7 inches wide and as high as the names need.

    Returns
    -------
    Axes
        Its `texts` hold every category, family and title that was drawn.
    """
    catalogue = list(catalogue)
    colors = dict(zip(list(TAXONOMY)[1:], COLORS)) | {"baseline": "0.35"}
    # The baseline comes last: it shortens no side.
    order = [*list(TAXONOMY)[1:], "baseline"]
    rows = [(category, family) for category in order for family in TAXONOMY[category]]
    names = {family: list_titles(catalogue, family) for _, family in rows}
    heights = [0.2 + 0.15 * (names[family].count("\n") + 1) for _, family in rows]
    # A little air between two categories.
    gaps = [0.14 * (a[0] != b[0]) for a, b in pairwise([rows[0], *rows])]
    tops = np.cumsum([h + g for h, g in zip(heights, gaps)])
    levels = {
        family: float(tops[-1] - top + height / 2)
        for (_, family), top, height in zip(rows, tops, heights)
    }
    total = max(float(tops[-1]), 2.6)
    # The axes fill the figure, so that lengths below are inches.
    axes = ax or plt.figure(figsize=(7, total)).add_axes((0.0, 0.0, 1.0, 1.0))
    draw_block(axes, total / 2, colors)
    for category in order:
        reach = [heights[k] / 2 for k, row in enumerate(rows) if row[0] == category]
        own = [levels[family] for family in TAXONOMY[category]]
        draw_category(axes, category, colors[category], own, (reach[0], reach[-1]))
        for family in TAXONOMY[category]:
            known = any(m.family == family for m in catalogue)
            draw_family(
                axes, family, names[family], levels[family], colors[category], known
            )
    axes.set_xlim(0, 7)
    axes.set_ylim(0, total)
    axes.axis("off")
    return axes


def draw_category(
    axes: Axes, category: str, color: str, own: list[float], reach: tuple[float, float]
) -> None:
    """A bar beside a category's families, its name, and what it makes fewer of."""
    middle, (first, last) = (max(own) + min(own)) / 2, reach
    axes.plot(
        [2.85, 2.85], [min(own) - last + 0.06, max(own) + first - 0.06],
        color=color, linewidth=2, solid_capstyle="butt",
    )  # fmt: skip
    if category != "baseline":
        axes.text(
            2.75, middle, category, ha="right", va="bottom", color=color,
            weight="bold", fontsize=8.5,
        )  # fmt: skip
    if category in SIDES:
        axes.text(
            2.75, middle - 0.03, f"fewer {SIDES[category]}", ha="right", va="top",
            color=color, fontsize=7.5,
        )  # fmt: skip


def draw_family(
    axes: Axes, family: str, titles: str, level: float, color: str, known: bool
) -> None:
    """A family's name and its methods."""
    axes.text(2.95, level, family, va="center", color=color, weight="bold", fontsize=8)
    axes.text(
        4.3, level, titles, va="center", fontsize=7.5,
        color="0.15" if known else "0.5", style="normal" if known else "italic",
    )  # fmt: skip


def draw_block(axes: Axes, middle: float, colors: dict[str, str]) -> None:
    """A table as a block, its three sides in the categories' colours."""
    left, low, right, high, shift = 0.28, middle - 0.75, 0.88, middle + 0.5, 0.24
    far = (right + shift, high + shift)
    axes.fill([left, right, right, left], [low, low, high, high], color="0.95")
    for y in np.linspace(low, high, 7):
        axes.plot([left, right], [y, y], color="0.75", linewidth=0.7)
    for x in np.linspace(left, right, 5):
        axes.plot([x, x], [low, high], color="0.75", linewidth=0.7)
    outline = [(left, high), (left + shift, far[1]), far, (far[0], low + shift)]
    axes.plot(*zip(*outline, (right, low)), color="0.6", linewidth=0.9)
    edges = {
        "low precision": ((right, high), far),
        "mixed dimension": ((left, low), (right, low)),
        "weight sharing": ((left, low), (left, high)),
    }
    for category, edge in edges.items():
        axes.plot(*zip(*edge), color=colors[category], linewidth=3.5)
    places = {
        "low precision": (far[0] - 0.12, far[1] + 0.12, "$b$ bits", 0),
        "mixed dimension": ((left + right) / 2, low - 0.12, "$d$ columns", 0),
        "weight sharing": (left - 0.12, (low + high) / 2, "$n$ rows", 90),
    }
    for category, (x, y, text, turn) in places.items():
        axes.text(
            x, y, text, rotation=turn, color=colors[category], fontsize=8.5,
            ha="center", va="center",
        )  # fmt: skip
