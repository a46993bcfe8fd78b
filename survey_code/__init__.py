"""Embedding compression in recommender systems: the survey, executable.

>>> import numpy as np, survey_code
>>> table = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
>>> layout = survey_code.compress(table, "rowwise", bits=4)
>>> layout.nbytes, layout.lookup([3, 14]).shape
(12000, (2, 16))
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names are loaded when first used, so that importing the package is instant.
_HOMES = {
    "CompressedEmbedding": "embedding",
    "FrozenEmbedding": "embedding",
    "FullEmbedding": "embedding",
    "Layout": "layouts",
    "Method": "catalog",
    "Result": "lab",
    "TableSpec": "spec",
    "compress": "catalog",
    "load_layout": "layouts",
    "methods": "catalog",
    "run": "lab",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'survey_code' has no attribute {name!r}")
    return getattr(importlib.import_module(f"survey_code.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
