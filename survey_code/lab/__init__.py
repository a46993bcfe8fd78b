"""MEASURES: accuracy, memory, latency, at equal bytes; and draws what it found."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from survey_code.curves import Difference
    from survey_code.lab.arithmetic import count_multiply_adds
    from survey_code.lab.card import Card
    from survey_code.lab.comparison import (
        compare,
        judge,
        main_metric,
        rank,
        subtract,
        tabulate,
    )
    from survey_code.lab.contest import Contest, Entrant
    from survey_code.lab.experiment import (
        Experiment,
        recall,
        repeat,
        run,
        run_once,
        sweep,
    )
    from survey_code.lab.latency import measure_lookup
    from survey_code.lab.low_bits import judge_bits
    from survey_code.lab.memory import (
        MemoryMeter,
        compare_search_cost,
        measure_training,
    )
    from survey_code.lab.newcomer import make_card
    from survey_code.lab.places import (
        bootstrap_places,
        choose_by_validation,
        find_critical_difference,
        find_unbeaten,
        place_methods,
        plot_front,
        plot_intervals,
        price_methods,
    )
    from survey_code.lab.plots import plot_marks, plot_tradeoff
    from survey_code.lab.promises import Verdict, check_promises
    from survey_code.lab.results import (
        Result,
        describe_results,
        load_results,
        summarize,
    )
    from survey_code.lab.speed import tabulate_arithmetic, tabulate_rates
    from survey_code.lab.stream import StreamExperiment, run_stream
    from survey_code.lab.task import DataTask, make_task
    from survey_code.lab.trial import Trial, default_trial
    from survey_code.lab.unseen import UnseenExperiment, fill_unseen

# Names are loaded when first used: plots need matplotlib, tasks torch.
_HOMES = {
    "Card": "card",
    "Contest": "contest",
    "Difference": "comparison",
    "Entrant": "contest",
    "Verdict": "promises",
    "check_promises": "promises",
    "compare": "comparison",
    "rank": "comparison",
    "subtract": "comparison",
    "Experiment": "experiment",
    "MemoryMeter": "memory",
    "Result": "results",
    "StreamExperiment": "stream",
    "DataTask": "task",
    "Trial": "trial",
    "UnseenExperiment": "unseen",
    "compare_search_cost": "memory",
    "count_multiply_adds": "arithmetic",
    "fill_unseen": "unseen",
    "default_trial": "trial",
    "describe_results": "results",
    "load_results": "results",
    "judge": "comparison",
    "judge_bits": "low_bits",
    "main_metric": "comparison",
    "make_card": "newcomer",
    "make_task": "task",
    "measure_lookup": "latency",
    "measure_training": "memory",
    "plot_marks": "plots",
    "bootstrap_places": "places",
    "choose_by_validation": "places",
    "find_critical_difference": "places",
    "find_unbeaten": "places",
    "place_methods": "places",
    "plot_front": "places",
    "plot_intervals": "places",
    "price_methods": "places",
    "plot_tradeoff": "plots",
    "recall": "experiment",
    "repeat": "experiment",
    "run": "experiment",
    "run_once": "experiment",
    "run_stream": "stream",
    "summarize": "results",
    "sweep": "experiment",
    "tabulate": "comparison",
    "tabulate_arithmetic": "speed",
    "tabulate_rates": "speed",
}

__all__ = [
    "Card",
    "Contest",
    "DataTask",
    "Difference",
    "Entrant",
    "Experiment",
    "MemoryMeter",
    "Result",
    "StreamExperiment",
    "Trial",
    "UnseenExperiment",
    "Verdict",
    "bootstrap_places",
    "check_promises",
    "choose_by_validation",
    "compare",
    "compare_search_cost",
    "count_multiply_adds",
    "default_trial",
    "describe_results",
    "fill_unseen",
    "find_critical_difference",
    "find_unbeaten",
    "judge",
    "judge_bits",
    "load_results",
    "main_metric",
    "make_card",
    "make_task",
    "measure_lookup",
    "measure_training",
    "place_methods",
    "plot_front",
    "plot_intervals",
    "plot_marks",
    "plot_tradeoff",
    "price_methods",
    "rank",
    "recall",
    "repeat",
    "run",
    "run_once",
    "run_stream",
    "subtract",
    "summarize",
    "sweep",
    "tabulate",
    "tabulate_arithmetic",
    "tabulate_rates",
]


# Type checkers see the names above, and no others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'survey_code.lab' has no attribute {name!r}")
        return getattr(importlib.import_module(f"survey_code.lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
