"""Tables of recorded rates; `benchmarks/` measures them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd


def tabulate_rates(path: str | os.PathLike[str], kinds: Sequence[str]) -> pd.DataFrame:
    """Recorded rates of composed layouts, in billions of rows a second.

    Parameters
    ----------
    path : path
        A file that `measure_composed` made.
    kinds : sequence of str
        Layouts, in the order to show them.

    Returns
    -------
    DataFrame
        Indexed by ``kind``.  ``bags``: our kernel, 32 ids a bag; ``torch``: its
        ``embedding_bag`` on the full table, the same bags; ``gather``: plain reading of
        as many bytes; ``single rows``: our kernel, one row written for each id;
        ``torch, single``: its bags of one id.

    Raises
    ------
    ValueError
        If the file lacks a kind.
    """
    lines = pd.read_json(path, lines=True)
    missing = set(kinds) - set(lines["kind"])
    if missing:
        raise ValueError(f"no rates of {sorted(missing)}, only {set(lines['kind'])}")
    bags, single = (
        part.pivot(index="kind", columns="what", values="rows_per_s") / 1e9
        for part in (lines[lines["length"] > 1], lines[lines["length"] == 1])
    )
    shown = bags[["bag", "torch", "gather"]].rename(columns={"bag": "bags"})
    shown["single rows"], shown["torch, single"] = single["lookup"], single["torch"]
    return shown.loc[list(kinds)]


def tabulate_arithmetic(
    path: str | os.PathLike[str], index: str, kind: str | None = None
) -> pd.DataFrame:
    """Recorded rates, in billions a second.

    Parameters
    ----------
    path : path
        A file that one of the functions above made.
    index : str
        The size or the name that tells its lines apart: ``"queries"``, ``"clusters"``,
        ``"multiplications"``, ``"kind"``.
    kind : str, optional
        Show the lines of this kind only.

    Returns
    -------
    DataFrame
        A row for each value of `index`, a column for each way, in the file's order.

    Raises
    ------
    ValueError
        If the file lacks the kind.
    """
    lines = pd.read_json(path, lines=True)
    if kind is not None:
        known = list(lines["kind"].unique())
        lines = lines[lines["kind"] == kind]
        if lines.empty:
            raise ValueError(f"no rates of {kind!r}, only {known}")
        lines = lines.astype({index: int})
    table = lines.pivot(index=index, columns="what", values="per_s") / 1e9
    return table.loc[lines[index].unique(), lines["what"].unique()]
