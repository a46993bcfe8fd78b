"""What the tests of searches and pruning train on."""

import numpy as np

from survey_code import TableSpec
from survey_code.lab import Trial
from survey_code.training import TrainingSettings

TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=256, patience=0, precision="float64"),
    {"hidden": (8,), "cross_layers": 1}, init_std=0.2,
)  # fmt: skip


def zipf_spec(rows=3000, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    counts = np.floor(5 * rows / (1 + rng.permutation(rows))).astype(np.int64)
    return TableSpec(rows, dim, [0, rows // 3, rows], counts)
