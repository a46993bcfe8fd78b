"""The tasks: a synthetic world, and loaders for three public data sets."""

from __future__ import annotations

import importlib
import inspect
from functools import lru_cache
from typing import Any

import numpy as np

from survey_code.data.tasks import ClickData, ClickRows, InteractionData, StreamData

LOADERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "synthetic": ("synthetic", "make_clicks", {"preset": "small"}),
    "synthetic-large": ("synthetic", "make_clicks", {"preset": "large"}),
    "synthetic-content": ("synthetic", "make_clicks", {"preset": "content"}),
    "synthetic-stream": ("synthetic", "make_stream", {"preset": "stream"}),
    "synthetic-seasons": ("synthetic", "make_stream", {"preset": "seasons"}),
    "synthetic-interactions": ("synthetic", "make_interactions", {}),
    "frappe": ("frappe", "load_frappe", {}),
    "gowalla": ("gowalla", "load_gowalla", {}),
    "gowalla-renumbered": ("gowalla", "load_gowalla", {"renumber": 0}),
    "movietweetings": ("movietweetings", "load_movietweetings", {}),
    "movietweetings-pairs": ("movietweetings", "load_movietweetings_pairs", {}),
}


def load(name: str, **options: Any) -> ClickData | InteractionData | StreamData:
    """A data set by name; loaded once a process, its arrays read-only.

    Parameters
    ----------
    name : str
        "synthetic", "synthetic-large", "synthetic-content", "synthetic-stream",
        "synthetic-seasons", "synthetic-interactions", "frappe", "gowalla",
        "gowalla-renumbered", "movietweetings" or "movietweetings-pairs".
    **options
        Of the loader, e.g. ``seed=1`` or ``hold_out=0``.

    Raises
    ------
    ValueError
        If there is no such data set, or an option is unknown or out of its range.
    FileNotFoundError
        If its files are neither in ``SURVEY_CODE_DATA`` nor to be downloaded.
    """
    if not isinstance(name, str) or name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; data sets: {sorted(LOADERS)}")
    asked = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
    try:
        hash(tuple(asked.values()))
    except TypeError as error:
        raise ValueError(f"an option of {name} is of no use: {error}") from error
    return load_once(name, **asked)


@lru_cache(maxsize=8)
def load_once(name: str, **options: object) -> ClickData | InteractionData | StreamData:
    """`load`, of options that a cache can hold."""
    module, function, defaults = LOADERS[name]
    loader = getattr(importlib.import_module(f"survey_code.data.{module}"), function)
    given = {**defaults, **options}
    known = inspect.signature(loader).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        unknown = sorted(set(given) - {parameter.name for parameter in known})
        if unknown:
            raise ValueError(f"{name} has no option {unknown[0]!r}")
    data = loader(**given)
    content = [] if data.content is None else [data.content]
    for array in (*list_arrays(data), *content):
        array.flags.writeable = False
    return data


def list_arrays(data: ClickData | InteractionData | StreamData) -> list[np.ndarray]:
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
