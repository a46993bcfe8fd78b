"""A data set with a network to put around a table: what methods learn from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from survey_code.data.tasks import ClickData
from survey_code.embedding import CompressedEmbedding, as_table, decode_layout
from survey_code.layouts import Layout
from survey_code.models import CLICK_NETWORKS, build_click_network
from survey_code.spec import TableSpec
from survey_code.training import (
    ClickObjective,
    TrainingSettings,
    evaluate_clicks,
    train,
)


@dataclass(frozen=True)
class Trial:
    """How a data set is used unless a caller says otherwise.

    Parameters
    ----------
    model : str
    dim : int
        Of the full table.
    settings : TrainingSettings
    layers : dict
        Of the network around the table.
    init_std : float
        Spread of the full table's entries at the start.
    """

    model: str
    dim: int
    settings: TrainingSettings
    layers: dict[str, Any] = field(default_factory=dict)
    init_std: float = 0.01


def default_trial(data: Any) -> Trial:
    """The trial of a data set, by its name; see the page on data sets."""
    for prefix, trial in TRIALS.items():
        if data.name.startswith(prefix):
            return trial
    return TRIALS["synthetic"]


SMALL_LAYERS = {"hidden": (64, 32), "cross_layers": 2}
TRIALS = {
    # One epoch in a second or two on one core; no batch norm and no dropout,
    # whose numbers depend on the processor.
    "synthetic": Trial(
        "dcnv2", 16, TrainingSettings(epochs=1, batch_size=1024, patience=0),
        SMALL_LAYERS,
    ),
    "frappe": Trial(
        "dcnv2", 16, TrainingSettings(epochs=30, batch_size=4096, l2=0.05),
        {"batch_norm": True, "dropout": 0.2},
    ),
    "movietweetings": Trial(
        "fm", 16, TrainingSettings(epochs=12, batch_size=1024, learning_rate=5e-3),
    ),
}  # fmt: skip


class Task:
    """Data, network and training settings: everything around a table.

    Parameters
    ----------
    data : ClickData
    trial : Trial
    seed : int
        Of the table, the network and the order of the rows.
    """

    def __init__(self, data: ClickData, trial: Trial, seed: int) -> None:
        if trial.model not in CLICK_NETWORKS:
            raise ValueError(
                f"{data.name} is a click task; its networks are "
                f"{sorted(CLICK_NETWORKS)}, got {trial.model!r}"
            )
        self.data = data
        self.trial = trial
        self.seed = seed
        self.spec: TableSpec = data.spec(trial.dim, trial.init_std)
        self.seconds = 0.0

    @property
    def per_id_bytes(self) -> int:
        """Bytes of weights per id outside the table (first-order weights)."""
        per_id = self.trial.model in ("fm", "deepfm")
        return 4 * self.spec.num_embeddings * per_id

    def build_network(self, table: CompressedEmbedding) -> Any:
        """A fresh network around a table."""
        fields = len(self.data.field_starts) - 1
        return build_click_network(
            self.trial.model, table, fields, self.seed, **self.trial.layers
        )

    def train(self, table: CompressedEmbedding, **changes: Any) -> Any:
        """Train a table and a fresh network; `changes` replace settings."""
        settings = dataclasses.replace(self.trial.settings, **changes)
        network = self.build_network(table)
        network.history = train(
            network, ClickObjective(self.data, settings), settings, self.seed
        )
        self.seconds += network.history.seconds
        return network

    def evaluate(
        self, network: Any, layout: Layout
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Validation and test metrics with vectors read from the layout."""
        device = self.trial.settings.device
        table, network.table = network.table, as_table(decode_layout(layout))
        network.to(device)
        try:
            return (
                evaluate_clicks(network, self.data.valid, device),
                evaluate_clicks(network, self.data.test, device),
            )
        finally:
            network.table = table

    def sample_ids(self) -> torch.Tensor:
        """The ids of one training batch, shape (batch, fields)."""
        rows = self.data.train.ids[: self.trial.settings.batch_size]
        return torch.from_numpy(rows.astype("int64"))
