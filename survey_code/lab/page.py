"""A card as one page: HTML that asks for nothing from anywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from string import Template
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from survey_code.book import COLORS, STYLE
from survey_code.curves import FALLBACK
from survey_code.lab.card import Card, Entry, name_shown
from survey_code.lab.comparison import summarize_curves
from survey_code.lab.plots import METRIC_NAMES, draw_tradeoff, plot_places
from survey_code.lab.results import Result, describe_results, group_seeds
from survey_code.lab.standing import say_gap, tabulate_gaps, tabulate_places
from survey_code.lab.tuning import TRIALS_EACH
from survey_code.layouts.files import replace_file

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6rem 0 1.2rem; font-size: 0.88rem; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #8886;
  white-space: nowrap; vertical-align: top; }
td.long { white-space: normal; }
figure { margin: 1rem 0; }
figure svg { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
figcaption, .note { font-size: 0.88rem; opacity: 0.8; }
.bad { border-left: 4px solid #d55e00; padding-left: 0.8rem; }
code { font-size: 0.92em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$what</p>
$broken
<h2>In short</h2>
<ul>
$short
</ul>
$contests
<h2>The checks</h2>
<p>What every method promises, tried on small tables without any data.</p>
$checks
<h2>How to read this</h2>
<p>Everyone has $trials trials near 10x, chosen by validation alone: first the same
grid of rates, then the method's own options; the best three are tried again at 30x.
What is shown is mean and sample deviation of the test over the seeds. A tilde marks
what was read off between two ratios that were reached. <em>cannot</em> is a budget out
of reach, which counts as what double hashing makes of it. A difference is called
<em>clear</em> if it is beyond two deviations of the paired differences over three seeds
at least. A budget of 10x is a tenth of the full float32 table's bytes; all that reading
a row needs is counted.</p>
<h2>Where this comes from</h2>
<ul>
$sources
</ul>
</body>
</html>
""")

CONTEST = Template("""<h2>On $data</h2>
$notes
$figures
<h3>At each budget</h3>
$places
<h3>Less the simple rivals</h3>
$gaps
<h3>Bytes and rows</h3>
$sizes
<h3>What tuning chose</h3>
$settings
<h3>Costs near 10x</h3>
$costs
""")

# A method's settings that are tuned, by the names of its results.
SETTINGS = ("table_learning_rate", "learning_rate", "l2", "table_l2")


def write_page(card: Card) -> None:
    """Write the page of a card: beside its place first, then renamed."""
    text = draw_page(card)
    with replace_file(card.page) as file:
        file.write(text.encode())


def draw_page(card: Card) -> str:
    """The page of a card, as text."""
    method = card.method
    verdicts = pd.DataFrame(
        [(v.name, v.words, "passed" if v.kept else f"failed: {v.said}")
         for v in card.verdicts],
        columns=["check", "what is promised", "outcome"],
    ).set_index("check")  # fmt: skip
    return PAGE.substitute(
        name=escape(method.title),
        title=f"{escape(method.title)} (<code>{escape(method.key)}</code>)",
        what=escape(
            f"A method of the family {method.family} ({method.category}), which "
            f"compresses {' or '.join(method.stages)}."
        ),
        broken=say_broken(card),
        short="\n".join(f"<li>{escape(line)}</li>" for line in sum_up(card)),
        contests="\n".join(map(draw_entry, card.entries)),
        checks=draw_table(verdicts, long=True),
        trials=TRIALS_EACH,
        sources="\n".join(list_sources(card)),
    )


def say_broken(card: Card) -> str:
    """A warning, where a check was not passed."""
    if not card.broken:
        return ""
    names = ", ".join(verdict.name for verdict in card.broken)
    return (
        f'<p class="bad">It does not pass every check: {escape(names)}. What follows '
        "is of a method that does not keep the contract.</p>"
    )


def sum_up(card: Card) -> list[str]:
    """A card in a few lines."""
    kept = len(card.verdicts) - len(card.broken)
    lines = [f"It passes {kept} of {len(card.verdicts)} checks."]
    for entry in card.entries:
        if entry.failed or not entry.standings:
            lines.append(f"{entry.data}: not all runs could be made.")
            continue
        places = [
            f"{one.ratio:g}x cannot" if one.how == "cannot"
            else f"{one.rank:g} of {one.rivals + 1} at {one.ratio:g}x"
            for one in entry.standings
        ]  # fmt: skip
        line = f"{entry.data}: place {', '.join(places)}"
        near = min(entry.standings, key=lambda one: abs(one.ratio - 10))
        gap = near.gaps.get(FALLBACK)
        if gap is not None:
            said = say_gap(gap, entry.comparable)
            line += f"; less double hashing at {near.ratio:g}x: {said}"
        lines.append(f"{line}.")
    return lines


def draw_entry(entry: Entry) -> str:
    """One contest's part of the page."""
    notes = list_notes(entry)
    metric = METRIC_NAMES.get(entry.metric, entry.metric)
    places = tabulate_places(entry.standings, metric, entry.cannot, entry.comparable)
    return CONTEST.substitute(
        data=escape(entry.data),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        figures="\n".join(draw_figures(entry)) if entry.standings else "",
        places=draw_table(places),
        gaps=draw_table(tabulate_gaps(entry.standings, comparable=entry.comparable)),
        sizes=draw_table(tabulate_sizes(entry)),
        settings=draw_table(tabulate_settings(entry)),
        costs=draw_table(tabulate_costs(entry.costs)) + say_measured(entry),
    )


def list_notes(entry: Entry) -> list[str]:
    """What a reader of a contest's part has to know."""
    notes = []
    if not entry.field_data:
        notes.append(
            f"No field of {entry.contest} comes with the package: only those who were "
            "run beside the method are shown."
        )
    elif not entry.comparable:
        notes.append(
            f"The field was recorded on {entry.field_data}, the method was run on "
            f"{entry.data}: their seeds are not pairs, and nothing is called clear."
        )
    if entry.failed:
        notes.append(f"Runs that could not be made: {entry.failed}")
    failed = [t for t in entry.trials if t.failure and t.key == entry.name]
    if failed:
        notes.append(f"{len(failed)} trials ended early: {failed[0].failure}")
    return notes


# -- figures -----------------------------------------------------------------------


def draw_figures(entry: Entry) -> list[str]:
    """The trade-off and the places, each with a caption."""
    named = name_shown(entry)
    others = entry.standings[0].rivals + 1 - len(named)
    among = f" among {others} in grey, as the book recorded them" * bool(others)
    said = describe_lines(entry, named)
    return [
        draw_figure(
            lambda axes: draw_tradeoff(
                summarize_curves(entry.curves), entry.metric, axes, named
            ),
            f"{METRIC_NAMES.get(entry.metric, entry.metric)} against the compression "
            f"ratio. {said}",
            f"The trade-off: {', '.join(named)}{among}. The dashed line is the full "
            "table, in the band of one deviation.",
        ),
        draw_figure(
            lambda axes: plot_places(
                entry.standings, entry.curves, named, entry.metric, axes
            ),
            f"A row of marks for each budget. {describe_places(entry)}",
            "Everyone within each budget, a mark a method; further right is better.",
            (6.0, 2.6),
        ),
    ]


def describe_lines(entry: Entry, named: Sequence[str]) -> str:
    """The named lines of a trade-off, in words."""
    lines = []
    for name in (*named, "full"):
        points = entry.curves.get(name, [])
        read = ", ".join(f"{p.mean:.4f} at {p.reached[0]:.3g}x" for p in points)
        lines.append(f"{'The full table' if name == 'full' else name}: {read}.")
    return " ".join(line for line in lines if not line.endswith(": ."))


def describe_places(entry: Entry) -> str:
    """The places, in words."""
    told = [
        f"At {one.ratio:g}x {entry.name} "
        + (
            "cannot."
            if one.how == "cannot"
            else f"is {one.rank:g} of {one.rivals + 1}."
        )
        for one in entry.standings
    ]
    return " ".join(told)


def draw_figure(
    draw: Callable[[Axes], object],
    alt: str,
    caption: str,
    size: tuple[float, float] = (6.0, 3.6),
) -> str:
    """A picture in the page: an SVG with its alt text, and a caption."""
    style: Any = {
        **STYLE, "axes.prop_cycle": cycler(color=list(COLORS)), "svg.fonttype": "none",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    named = f'<svg role="img" aria-label="{escape(alt)}"'
    drawn = drawn.replace("<svg", named, 1)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


# -- tables ------------------------------------------------------------------------


def draw_table(table: pd.DataFrame, long: bool = False) -> str:
    """A table of text as HTML; long cells are broken into lines."""
    if table.empty:
        return "<p>Nothing to show.</p>"
    head = [str(table.index.name or ""), *map(str, table.columns)]
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    kind = ' class="long"' if long else ""
    for name, *cells in table.itertuples():
        shown = "".join(f"<td{kind}>{escape(str(cell))}</td>" for cell in cells)
        lines.append(f"<th>{escape(str(name))}</th>{shown}")
    rows = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table>\n{rows}</table></div>'


def say_measured(entry: Entry) -> str:
    """Where and when costs were measured."""
    where = {f"{line['device']}, {line['date']}" for line in entry.costs}
    said = f"Each measured alone: {'; '.join(sorted(where))}."
    return f'<p class="note">{escape(said)}</p>' if where else ""


def group_points(entry: Entry) -> dict[str, list[Result]]:
    """The method's runs by entrant and ratio, as rows of tables are named."""
    groups = {}
    for (_, entrant, ratio), runs in group_seeds(entry.own).items():
        more = "" if entrant in ("", entry.name) else f", {entrant}"
        groups[f"{ratio:.4g}x{more}"] = runs
    return groups


def tabulate_sizes(entry: Entry) -> pd.DataFrame:
    """Bytes asked for and reached, those of training, and rows seen, as text.

    Returns
    -------
    DataFrame
        Indexed by ``asked``: the ratio.
    """
    rows = {}
    for asked, runs in group_points(entry).items():
        sizes = {
            name: mean_of([run.bytes.get(name, 0) for run in runs])
            for name in ("inference", "training_persistent", "training_peak")
        }
        peaks = [run.bytes.get("training_peak_in_search", 0) for run in runs]
        seen = {n: mean_of([run.rows.get(n, 0) for run in runs]) for n in runs[0].rows}
        rows[asked] = {
            "reached": f"{np.mean([run.reached_ratio for run in runs]):.2f}x",
            "bytes stored": f"{sizes['inference']:,}",
            "kept in training": f"{sizes['training_persistent']:,}",
            "peak of training": f"{max(sizes['training_peak'], mean_of(peaks)):,}",
            "rows searched": f"{seen.get('search', 0):,}",
            "rows trained": f"{seen.get('train', 0):,}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("asked")


def mean_of(numbers: Sequence[int]) -> int:
    """A mean as a whole number."""
    return round(float(np.mean(numbers)))


def tabulate_settings(entry: Entry) -> pd.DataFrame:
    """The rates and the options with which each ratio was run, as text.

    Returns
    -------
    DataFrame
        Indexed by ``asked``: the ratio.
    """
    rows = {}
    for asked, (run, *_) in group_points(entry).items():
        rates = {
            name.replace("_", " "): f"{run.settings[name]:.3g}"
            for name in SETTINGS
            if run.settings.get(name)
        }
        options = ", ".join(f"{n}={v!r}" for n, v in sorted(run.options.items()))
        rows[asked] = {**rates, "options": options or "none"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("asked").fillna("")


def tabulate_costs(costs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What was measured beside accuracy, a column a method, as text.

    Returns
    -------
    DataFrame
        Indexed by ``measure``.
    """
    columns = {line["entrant"]: say_cost(line) for line in costs}
    return pd.DataFrame(columns).rename_axis("measure")


def say_cost(line: dict[str, Any]) -> dict[str, str]:
    """One line of costs in words, by measure."""
    memory, moved = line["training_bytes"], line["moved_per_row"]
    told = {
        "ratio": f"{line['reached_ratio']:.2f}x",
        "bytes stored": f"{line['stored_bytes']:,}",
        "bytes held while serving": f"{line['held_bytes']:,}",
        "bytes kept in training": f"{memory['persistent']:,}",
        "bytes at training's peak": f"{memory['peak']:,}",
        "bytes at the search's peak": f"{memory.get('peak_in_search', 0):,}",
        "us a row trained": f"{line['train']['us_per_row']:.2f}",
        "us a row searched": f"{line['search']['us_per_row']:.2f}",
        "seconds to compress": f"{line['compress_s']:.2f}",
        "bytes that a new row moves": "all" if moved is None else f"{moved:,.0f}",
    }
    for call in ("lookup", "bag"):
        for size, (median, slow) in line[call].items():
            name = f"{call} of {int(size):,} ids, us, p50 / p99"
            told[name] = f"{median:,.0f} / {slow:,.0f}"
    return told


def list_sources(card: Card) -> list[str]:
    """Where the numbers come from, a list item each."""
    told = card.describe()
    versions = ", ".join(f"{name} {v}" for name, v in told["versions"].items())
    items = [
        f"<li>Command: <code>{escape(card.command)}</code></li>",
        f"<li>Versions: {escape(versions)}</li>",
    ]
    for entry in card.entries:
        for part, results in (("trials", entry.trials), ("runs", entry.runs)):
            said = describe_results([one for one in results if not one.failure])
            items.append(f"<li>{escape(f'{entry.contest}, {part}: {said}')}</li>")
        if entry.field_data:
            said = f"{entry.contest}, the field: as survey_code has it on record"
            items.append(f"<li>{escape(said)}, on {escape(entry.field_data)}</li>")
    return items
