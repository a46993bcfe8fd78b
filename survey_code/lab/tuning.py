"""Equal tuning: the same number of trials for every method, chosen on validation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from survey_code.lab.task import Trial

TRIALS_EACH = 8
TUNING_SEED = 0
# Of the trial's own value, for every method.
FACTORS: dict[str, tuple[float, ...]] = {
    "table_learning_rate": (1.0, 0.2, 0.5, 2.0, 5.0),
    "learning_rate": (1.0, 0.5, 2.0),
    "l2": (1.0, 0.3, 3.0),
}
# What else a method may be asked; the first is its default.
KNOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    "mde_field": {"alpha": (0.3, 0.6)},
    "mde_popularity": {"alpha": (0.3, 0.6), "blocks": (8, 4)},
    "cprec": {"quotient": (4, 2)},
    "nis": {"policy_rate": (0.1, 0.03), "price": (0.3, 0.1), "columns": (4, 16)},
    "esapn": {"eager": (0.5, 0.2), "policy_rate": (0.01, 0.03)},
    "autoemb": {"choice_rate": (0.01, 0.03), "groups": (16, 8)},
    "autodim": {"choice_rate": (0.02, 0.05), "order": (1, 2)},
    "autosrh": {
        "groups": (10, 5, 20),
        "decay": (1e-5, 0.0, 1e-4),
        "mask_rate": (0.01, 0.03),
    },
    "optembed": {"decay": (1e-4, 0.0, 1e-5), "pull": (1e-3, 1e-4)},
    "bet": {"draws": (24, 48)},
    "deeplight": {"decay": (1e-5, 1e-6, 1e-4), "end": (0.6, 0.3)},
    "pep": {"decay": (1e-5, 1e-6, 1e-4), "travel": (20.0, 17.0)},
    "amtl": {"price": (0.01, 0.1), "twin_rate": (0.002, 0.01)},
    "optfs": {"price": (1e-4, 1e-5), "travel": (2.0, 5.0)},
    "double_hashing": {"combine": ("sum", "concat")},
    "binary_code_hash": {"combine": ("sum", "concat")},
    "quotient_remainder": {"combine": ("product", "sum", "concat")},
    "dhe": {"rate": (0.3, 0.1, 1.0), "layers": (1, 2)},
    "tt_rec": {"init": ("exact", "published")},
    "ant": {"sparsity": (0.01, 0.03, 0.003), "anchors": (None, 16)},
    "mlet": {"hidden": (None, 128)},
    "bloom": {"hashes": (4, 2)},
    "hash_embeddings": {"share": (0.2, 0.4)},
    "robe": {"block_len": (8, 4)},
    "cafe": {"share": (0.5, 0.2)},
    "dpq": {"commitment": (0.0, 0.25)},
    "mgqe": {"commitment": (0.0, 0.25), "head_share": (0.1, 0.3)},
    "lightrec": {"warm_up": (0.5, 0.3)},
    "cce": {"rounds": (2, 1), "schedule_end": (0.7, 0.4)},
}


def propose(key: str, trial: Trial) -> list[tuple[Trial, dict[str, Any]]]:
    """Eight ways to train a method: its defaults, and seven drawn at random.

    The draws are without repetition from all combinations of the training settings
    in `FACTORS` and the method's own options in `KNOBS`, the same for each call.

    Parameters
    ----------
    key : str
        The method's.
    trial : Trial
        What the factors are of; a setting that is 0 stays 0.

    Returns
    -------
    list of (Trial, dict)
        Fewer than eight where there are fewer combinations.
    """
    settings = trial.settings
    base = {
        "table_learning_rate": settings.table_learning_rate or settings.learning_rate,
        "learning_rate": settings.learning_rate,
        "l2": settings.l2,
    }
    factors = {name: steps for name, steps in FACTORS.items() if base[name]}
    knobs = KNOBS.get(key, {})
    combinations = list(itertools.product(*factors.values(), *knobs.values()))
    # Methods without options of their own draw alike, and share full tables.
    rng = np.random.default_rng(TUNING_SEED)
    drawn = 1 + rng.permutation(len(combinations) - 1)[: TRIALS_EACH - 1]
    proposals: list[tuple[Trial, dict[str, Any]]] = [(trial, {})]
    for place in drawn:
        values = dict(zip([*factors, *knobs], combinations[place]))
        changes = {
            name: base[name] * values[name] for name in factors if values[name] != 1
        }
        options = {name: values[name] for name in knobs}
        changed = dataclasses.replace(settings, **changes)
        proposals.append((dataclasses.replace(trial, settings=changed), options))
    return proposals


def name_metric(metrics: dict[str, float]) -> str:
    """The metric that decides: AUC for clicks, Recall@20 for rankings."""
    return "auc" if "auc" in metrics else "recall@20"
