"""Sorts that promise no order of equal keys draw one: python -m site reads this file.

What a chapter prints must not depend on that order, which differs between processors.
With this folder on PYTHONPATH (`make test-ties`) every chapter is compared so.
"""

from typing import Any

from survey_code import book

KEEP = ("stable", "mergesort")
set_up = book.setup


def setup(seed: int = 0) -> None:
    """As `survey_code.book.setup`, and then shuffle."""
    set_up(seed)
    shuffle_ties(seed)


def shuffle_ties(seed: int) -> None:
    """Put drawn orders in the place of NumPy's, torch's and pandas' unstable sorts."""
    import numpy as np
    import pandas as pd
    import torch

    rng = np.random.default_rng(seed)
    sort_keys, sort_table = np.argsort, pd.DataFrame.sort_values
    sort_series = pd.Series.sort_values

    def argsort(a: Any, axis: int | None = -1, kind: Any = None, **more: Any) -> Any:
        if kind in KEEP or more.get("stable"):
            return sort_keys(a, axis=axis, kind=kind, **more)
        keys = np.ravel(a) if axis is None else np.asarray(a)
        drawn = rng.random(keys.shape)
        return np.lexsort((drawn, keys), axis=-1 if axis is None else axis)

    def argpartition(a: Any, kth: Any, axis: int = -1, **more: Any) -> Any:
        return argsort(a, axis)

    def topk(a: Any, k: int, dim: int = -1, largest: bool = True, **more: Any) -> Any:
        drawn = torch.from_numpy(rng.permutation(a.shape[dim])).to(a.device)
        found = a.index_select(dim, drawn).sort(
            dim=dim, descending=largest, stable=True
        )
        values, places = (part.narrow(dim, 0, k) for part in found)
        return torch.return_types.topk((values, drawn[places]))

    def shuffled(sort: Any) -> Any:
        def sort_values(table: Any, *by: Any, **how: Any) -> Any:
            if how.get("kind") not in KEEP:
                table = table.iloc[rng.permutation(len(table))]
            return sort(table, *by, **{**how, "kind": "stable"})

        return sort_values

    np.argsort, np.argpartition = argsort, argpartition
    torch.topk = torch.Tensor.topk = topk
    pd.DataFrame.sort_values = shuffled(sort_table)
    pd.Series.sort_values = shuffled(sort_series)


book.setup = setup
