"""The tasks: a synthetic world, and loaders for three public data sets."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import numpy as np

from survey_code.data.tasks import ClickData, ClickRows, InteractionData, StreamData

LOADERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "synthetic": ("synthetic", "make_clicks", {"preset": "small"}),
    "synthetic-large": ("synthetic", "make_clicks", {"preset": "large"}),
    "synthetic-stream": ("synthetic", "make_stream", {"preset": "stream"}),
    "synthetic-interactions": ("synthetic", "make_interactions", {}),
    "frappe": ("frappe", "load_frappe", {}),
    "gowalla": ("gowalla", "load_gowalla", {}),
    "gowalla-renumbered": ("gowalla", "load_gowalla", {"renumber": 0}),
    "movietweetings": ("movietweetings", "load_movietweetings", {}),
}


@lru_cache(maxsize=8)
def load(name: str, **options: Any) -> ClickData | InteractionData | StreamData:
    """A data set by name; loaded once a process, its arrays read-only.

    Parameters
    ----------
    name : str
        "synthetic", "synthetic-large", "synthetic-stream",
        "synthetic-interactions", "frappe", "gowalla", "gowalla-renumbered" or
        "movietweetings".
    **options
        Of the loader, e.g. ``seed=1`` or ``hold_out=0``.

    Raises
    ------
    ValueError
        If there is no such data set.
    FileNotFoundError
        If its files are neither in ``SURVEY_CODE_DATA`` nor to be downloaded.
    """
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; data sets: {sorted(LOADERS)}")
    module, function, defaults = LOADERS[name]
    loader = getattr(importlib.import_module(f"survey_code.data.{module}"), function)
    data = loader(**{**defaults, **options})
    for array in list_arrays(data):
        array.flags.writeable = False
    return data


def list_arrays(data: Any) -> list[np.ndarray]:
    """The row arrays of a data set."""
    if isinstance(data, InteractionData):
        return [data.train, data.valid, data.test]
    parts = (
        data.windows
        if isinstance(data, StreamData)
        else (data.train, data.valid, data.test)
    )
    return [array for part in parts for array in (part.ids, part.labels)]


__all__ = ["ClickData", "ClickRows", "InteractionData", "StreamData", "load"]
