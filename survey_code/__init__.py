"""Embedding compression in recommender systems: the survey, executable.

>>> import numpy as np, survey_code
>>> table = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
>>> layout = survey_code.compress(table, "rowwise", bits=4)
>>> layout.nbytes, layout.lookup([3, 14]).shape
(12000, (2, 16))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from survey_code.advice.advise import advise
    from survey_code.baselines import FullEmbedding
    from survey_code.catalog import Method, compress, load_plugin, methods
    from survey_code.embedding import CompressedEmbedding
    from survey_code.lab.experiment import Experiment, run
    from survey_code.lab.results import Result
    from survey_code.layouts import Layout, load_layout
    from survey_code.method import AfterTraining, Searched, Trained
    from survey_code.options import Options
    from survey_code.serving.fbgemm import export_fbgemm
    from survey_code.serving.models import compress_model
    from survey_code.serving.modules import FrozenEmbedding, FrozenEmbeddingBag
    from survey_code.serving.onnx import export_onnx
    from survey_code.serving.streaming import compress_file
    from survey_code.serving.updates import update_rows
    from survey_code.spec import OutOfReach, TableSpec

__version__ = "0.1.0"

# Names are loaded when first used, so that importing the package is instant.
_HOMES = {
    "AfterTraining": "method",
    "CompressedEmbedding": "embedding",
    "Experiment": "lab.experiment",
    "FrozenEmbedding": "serving.modules",
    "FrozenEmbeddingBag": "serving.modules",
    "FullEmbedding": "baselines",
    "Layout": "layouts",
    "Method": "catalog",
    "Options": "options",
    "OutOfReach": "spec",
    "Result": "lab.results",
    "Searched": "method",
    "TableSpec": "spec",
    "Trained": "method",
    "advise": "advice.advise",
    "compress": "catalog",
    "compress_model": "serving.models",
    "export_fbgemm": "serving.fbgemm",
    "export_onnx": "serving.onnx",
    "compress_file": "serving.streaming",
    "load_layout": "layouts",
    "load_plugin": "catalog",
    "methods": "catalog",
    "run": "lab.experiment",
    "update_rows": "serving.updates",
}

__all__ = [
    "AfterTraining",
    "CompressedEmbedding",
    "Experiment",
    "FrozenEmbedding",
    "FrozenEmbeddingBag",
    "FullEmbedding",
    "Layout",
    "Method",
    "Options",
    "OutOfReach",
    "Result",
    "Searched",
    "TableSpec",
    "Trained",
    "advise",
    "compress",
    "compress_file",
    "compress_model",
    "export_fbgemm",
    "export_onnx",
    "load_layout",
    "load_plugin",
    "methods",
    "run",
    "update_rows",
]


# Type checkers see the names above, and no others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'survey_code' has no attribute {name!r}")
        return getattr(importlib.import_module(f"survey_code.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
