"""What the chapters share: the same digits everywhere, one way to print them.

Importing this imports the standard library only, because `setup` must come
before NumPy and torch.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

_done = False

# A printed metric whose next digits are within this (in units of the last printed
# digit) of a rounding edge could print differently on another processor.  Live
# experiments train in float64, where processors agree to far better than this.
EDGE = 0.002

STYLE: dict[str, Any] = {
    "figure.figsize": (5.0, 3.2),
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "survey-code",
}


def setup(seed: int = 0) -> None:
    """Fix seeds, threads and plot style.  The first thing a chapter does.

    One thread, or as many as SURVEY_CODE_THREADS says.  No switch chooses an
    instruction set: what a chapter prints must not depend on one.

    Parameters
    ----------
    seed : int, default 0

    Raises
    ------
    RuntimeError
        If NumPy or torch was imported before the first call: their threads are
        then already chosen.
    """
    global _done
    late = [name for name in ("numpy", "torch") if name in sys.modules]
    if late and not _done:
        raise RuntimeError(
            f"book.setup() comes too late: {' and '.join(late)} already imported. "
            "Restart the kernel and run the set-up cell first."
        )
    threads = read_threads()
    if not _done:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
    _done = True

    import random

    import matplotlib
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    from cycler import cycler

    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=list(COLORS))}
    matplotlib.rcParams.update(style)


def read_threads() -> int:
    """Threads that SURVEY_CODE_THREADS asks for; 1 where it is not set."""
    text = os.environ.get("SURVEY_CODE_THREADS", "1")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"SURVEY_CODE_THREADS must be a number from 1, got {text!r}")
    return int(text)


# Okabe and Ito's colours, which colour-blind readers can tell apart; markers
# differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# More than the colours: lines of the same colour differ in their marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")


def metric(value: float) -> str:
    """A metric (AUC, log-loss, recall) to three decimals; nothing where there is none,
    as of a single seed's deviation.

    With SURVEY_CODE_ROUNDING=check in the environment, a value on a rounding
    edge is an error: another processor might print another digit.

    Raises
    ------
    ValueError
        If the value is on a rounding edge and the check is on.
    """
    return "" if math.isnan(value) else _rounded(value, 3)


def ratio(value: float) -> str:
    """A compression ratio to one decimal, e.g. ``5.3x``.

    A quotient of two byte counts is the same on every machine: no edge to check.
    """
    return f"{value:.1f}x"


def count(value: int) -> str:
    """A whole number (bytes, rows) with thousands separated."""
    return f"{int(value):,}"


def _rounded(value: float, digits: int) -> str:
    scaled = abs(float(value)) * 10**digits
    # An exact half (2.25 to one decimal) is the same on every machine.
    exact = (2 * scaled) == round(2 * scaled)
    edge = abs(scaled % 1 - 0.5)
    if os.environ.get("SURVEY_CODE_ROUNDING") == "check" and edge < EDGE and not exact:
        raise ValueError(
            f"{value!r} is on a rounding edge at {digits} decimals: print it "
            "another way, or change the experiment"
        )
    return f"{value:.{digits}f}"


def source_markdown(thing: Any) -> str:
    """A function's or class's source as Markdown, with where it stands."""
    import inspect

    source = inspect.getsource(thing).rstrip()
    module = thing.__module__.replace(".", "/") + ".py"
    return f"From `{module}`:\n\n```python\n{source}\n```"


def show_source(thing: Any) -> Any:
    """Show a function or class of the package as it stands in its file."""
    from IPython.display import Markdown

    return Markdown(source_markdown(thing))
