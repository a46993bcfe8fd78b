"""MEASURES: accuracy, memory, latency, at equal bytes; and draws what it found."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "MemoryMeter": "memory",
    "Result": "results",
    "Task": "task",
    "Trial": "task",
    "compare_search_cost": "memory",
    "describe_results": "results",
    "load_results": "results",
    "measure_lookup": "latency",
    "measure_training": "memory",
    "plot_marks": "plots",
    "plot_tradeoff": "plots",
    "record": "records",
    "repeat": "runs",
    "run": "runs",
    "run_once": "runs",
    "run_stream": "stream",
    "summarize": "results",
    "summarize_near": "results",
    "sweep": "runs",
    "tabulate": "results",
    "tabulate_arithmetic": "arithmetic_rates",
    "tabulate_rates": "rates",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'survey_code.lab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"survey_code.lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
