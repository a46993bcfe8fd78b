"""Equal tuning: the same number of trials for every method, chosen on validation."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from survey_code.catalog import get_method
from survey_code.lab.experiment import Experiment
from survey_code.lab.results import Result
from survey_code.lab.trial import Trial
from survey_code.options import Options

TRIALS_EACH = 8
TUNING_SEED = 0
# Of the trial's own value, for every method.
FACTORS: dict[str, tuple[float, ...]] = {
    "table_learning_rate": (1.0, 0.2, 0.5, 2.0, 5.0),
    "learning_rate": (1.0, 0.5, 2.0),
    "l2": (1.0, 0.3, 3.0),
}


def propose(key: str, trial: Trial) -> list[tuple[Trial, Options]]:
    """Eight ways to train a method: its defaults, and seven drawn at random.

    The draws are without repetition from all combinations of the training settings
    in `FACTORS` and the values worth tuning of the method's own options, the same for
    each call.

    Parameters
    ----------
    key : str
        The method's.
    trial : Trial
        What the factors are of; a setting that is 0 stays 0.

    Returns
    -------
    list of (Trial, Options)
        Fewer than eight where there are fewer combinations.
    """
    settings = trial.settings
    base = {
        "table_learning_rate": settings.table_learning_rate or settings.learning_rate,
        "learning_rate": settings.learning_rate,
        "l2": settings.l2,
    }
    factors = {name: steps for name, steps in FACTORS.items() if base[name]}
    method = get_method(key)
    knobs = method.load().options.grid()
    combinations = list(itertools.product(*factors.values(), *knobs.values()))
    # Methods without options of their own draw alike, and share full tables.
    rng = np.random.default_rng(TUNING_SEED)
    drawn = 1 + rng.permutation(len(combinations) - 1)[: TRIALS_EACH - 1]
    proposals = [(trial, method.ask({}))]
    for place in drawn:
        values = dict(zip([*factors, *knobs], combinations[place]))
        changes = {
            name: base[name] * values[name] for name in factors if values[name] != 1
        }
        options = method.ask({name: values[name] for name in knobs})
        changed = dataclasses.replace(settings, **changes)
        proposals.append((dataclasses.replace(trial, settings=changed), options))
    return proposals


def apply_tuning(
    experiments: Iterable[Experiment], trials: Sequence[Result]
) -> list[Experiment]:
    """The experiments of methods all of whose trials are made, as the best was trained.

    A trial is better by its validation metric.
    """
    best: dict[str, tuple[Trial, Options] | None] = {}
    tuned = []
    for one in experiments:
        if one.method not in best:
            best[one.method] = choose_best(one, trials)
        if chosen := best[one.method]:
            trial, options = chosen
            tuned.append(dataclasses.replace(one, trial=trial, options=options))
    return tuned


def choose_best(
    experiment: Experiment, trials: Sequence[Result]
) -> tuple[Trial, Options] | None:
    """How the best trial of a method was trained; None if one is missing."""
    own = [result for result in trials if result.key == experiment.method]
    marks = []
    for trial, options in propose(experiment.method, experiment.trial):
        asked = dataclasses.replace(
            experiment, seed=TUNING_SEED, trial=trial, options=options
        )
        found = [
            result
            for result in own
            if dataclasses.replace(asked, ratio=result.requested_ratio).matches(result)
        ]
        if not found:
            return None
        validation = found[0].validation
        marks.append((validation[name_metric(validation)], (trial, options)))
    return max(marks, key=lambda mark: mark[0])[1]


def name_metric(metrics: dict[str, float]) -> str:
    """The metric that decides: AUC for clicks, Recall@20 for rankings."""
    return "auc" if "auc" in metrics else "recall@20"
