"""A data set with a network to put around a table: what methods learn from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from survey_code.data.tasks import ClickData, InteractionData, StreamData
from survey_code.embedding import CompressedEmbedding, as_table, decode_layout
from survey_code.layouts import Layout
from survey_code.models import (
    CLICK_NETWORKS,
    RANKING_NETWORKS,
    build_click_network,
    build_ranking_network,
)
from survey_code.objectives import (
    ClickObjective,
    RankingObjective,
    evaluate_clicks,
    evaluate_ranking,
)
from survey_code.spec import TableSpec
from survey_code.training import Objective, TrainingSettings, train


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
        Options of the network around the table.
    objective : dict
        Options of the objective.
    init_std : float
        Spread of the full table's entries at the start.
    """

    model: str
    dim: int
    settings: TrainingSettings
    layers: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    init_std: float = 0.01

    def describe(self) -> dict[str, Any]:
        """Everything but model and dimension, as one dict for JSON."""
        return {
            **dataclasses.asdict(self.settings),
            "layers": self.layers,
            "objective": self.objective,
            "init_std": self.init_std,
        }


SMALL = {"hidden": (32, 16)}
TRIALS = {
    # One epoch in a second or two on one core; no batch norm and no dropout,
    # whose numbers depend on the processor, and in float64, for the same digits on
    # all.  Spread and learning rates are the best of eight trials of the full
    # table on validation.
    ("synthetic", "dcnv2"): Trial(
        "dcnv2", 16,
        TrainingSettings(epochs=1, batch_size=1024, learning_rate=3e-3,
                         table_learning_rate=2e-2, patience=0,
                         precision="float64"),
        {**SMALL, "cross_layers": 1}, init_std=0.2,
    ),
    ("frappe", "dcnv2"): Trial(
        "dcnv2", 16, TrainingSettings(epochs=60, l2=5.0),
        {"batch_norm": True, "dropout": 0.2},
    ),
    ("movietweetings", "fm"): Trial(
        "fm", 10,
        TrainingSettings(epochs=12, batch_size=1024, learning_rate=5e-3, l2=0.1),
    ),
    # Sampled softmax on cosines learns in a tenth of the epochs that BPR needs.
    ("gowalla", "mf"): Trial(
        "mf", 64,
        TrainingSettings(epochs=400, batch_size=16384, learning_rate=2e-3,
                         evaluate_every=10, patience=3, decay=1.0),
        {"normalize": True}, {"loss": "softmax"}, init_std=0.1,
    ),
    ("synthetic", "mf"): Trial(
        "mf", 32,
        TrainingSettings(epochs=8, batch_size=1024, learning_rate=3e-2, patience=0,
                         decay=1.0, schedule="linear", precision="float64"),
        {"normalize": True},
        {"loss": "softmax", "negatives": 256, "temperature": 0.2}, init_std=0.1,
    ),
    # LightGCN as published, inner products and BPR, but large steps that shrink:
    # a constant rate small enough to end as well needs many times the epochs.
    ("gowalla", "lightgcn"): Trial(
        "lightgcn", 64,
        TrainingSettings(epochs=1000, batch_size=16384, learning_rate=1e-2, l2=1e-4,
                         evaluate_every=100, patience=3, decay=1.0,
                         schedule="linear"),
        {"layers": 3}, {"loss": "bpr"}, init_std=0.1,
    ),
}  # fmt: skip


def open_data(data: Any) -> Any:
    """A task from its name, or the data set as given; a stream as one task."""
    if isinstance(data, str):
        from survey_code.data import load

        data = load(data)
    return cut_stream(data) if isinstance(data, StreamData) else data


@lru_cache(maxsize=4)
def cut_stream(data: StreamData) -> ClickData:
    """The first half of the windows to learn from, the next one to select on, and
    all later ones as the test.  The same object for the same stream.
    """
    return data.as_clicks(train=len(data.windows) // 2)


def check_device(device: str) -> None:
    """Raise ValueError unless tensors can be made on a device."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {device!r} cannot be used: {error}") from None


def default_trial(data: Any, model: str | None = None) -> Trial:
    """The trial of a data set, by its name, and of a network.

    A network without a trial of its own takes the settings of the data set's
    first, with its own default layers.
    """
    named = [
        trial
        for (prefix, model_name), trial in TRIALS.items()
        if data.name.startswith(prefix) and is_ranking(model_name) == is_top_n(data)
    ]
    if not named:
        named = [t for t in TRIALS.values() if is_ranking(t.model) == is_top_n(data)]
    for trial in named:
        if trial.model == (model or trial.model):
            return trial
    layers = {k: v for k, v in named[0].layers.items() if k != "cross_layers"}
    if model == "fm" or is_top_n(data):
        layers = {}
    return dataclasses.replace(named[0], model=str(model), layers=layers)


def is_top_n(data: Any) -> bool:
    """Whether a data set asks for a ranking of items."""
    return bool(data.task == "top-n")


def is_ranking(model: str) -> bool:
    """Whether a network ranks items."""
    return model in RANKING_NETWORKS


class Task:
    """Data, network and training settings: everything around a table.

    `make_task` chooses the kind that a data set needs.

    Parameters
    ----------
    data : ClickData or InteractionData
    trial : Trial
    seed : int
        Of the table, the network and the order of the rows.
    """

    networks: tuple[str, ...] = ()

    def __init__(self, data: Any, trial: Trial, seed: int) -> None:
        if trial.model not in self.networks:
            raise ValueError(
                f"{data.name} is a {data.task} task; its networks are "
                f"{list(self.networks)}, got {trial.model!r}"
            )
        self.data = data
        self.trial = trial
        self.seed = seed
        check_device(trial.settings.device)
        # First-order weights count as storage too.
        per_id = 4 if trial.model in ("fm", "deepfm") else 0
        self.spec: TableSpec = dataclasses.replace(
            data.spec(trial.dim, trial.init_std),
            outside_bytes=per_id * data.num_embeddings,
        )

    def train(self, table: CompressedEmbedding, **changes: Any) -> Any:
        """Train a table and a fresh network; `changes` replace settings."""
        settings = dataclasses.replace(self.trial.settings, **changes)
        network = self.build_network(table)
        objective = self.build_objective(settings)
        network.history = train(network, objective, settings, self.seed)
        return network

    def read_through(self, network: Any, layout: Layout) -> Any:
        """The network with its table replaced by the layout's rows."""
        twin = network.__class__.__new__(network.__class__)
        twin.__dict__.update(network.__dict__)
        twin._modules = {**network._modules, "table": as_table(decode_layout(layout))}
        return twin.to(self.trial.settings.device).eval()

    def build_network(self, table: CompressedEmbedding) -> Any:
        """A fresh network around a table."""
        raise NotImplementedError

    def build_objective(self, settings: TrainingSettings) -> Objective:
        """What the network is to learn."""
        raise NotImplementedError

    def validate(self, network: Any, layout: Layout) -> dict[str, float]:
        """Validation metrics with vectors read from the layout."""
        raise NotImplementedError

    def test(self, network: Any, layout: Layout) -> dict[str, float]:
        """Test metrics with vectors read from the layout."""
        raise NotImplementedError

    def sample_ids(self) -> torch.Tensor:
        """The ids that one training step reads."""
        raise NotImplementedError

    def for_testing(self, network: Any) -> Task:
        """The task to train again before the test is looked at: usually this."""
        return self


class ClickTask(Task):
    """Predict clicks."""

    networks = tuple(CLICK_NETWORKS)
    data: ClickData

    def build_network(self, table: CompressedEmbedding) -> Any:
        """A fresh click network."""
        fields = len(self.data.field_starts) - 1
        return build_click_network(
            self.trial.model, table, fields, self.seed, **self.trial.layers
        )

    def build_objective(self, settings: TrainingSettings) -> Objective:
        """Binary cross-entropy."""
        return ClickObjective(self.data, settings)

    def validate(self, network: Any, layout: Layout) -> dict[str, float]:
        """AUC and log-loss on the validation rows."""
        twin = self.read_through(network, layout)
        return evaluate_clicks(twin, self.data.valid, self.trial.settings.device)

    def test(self, network: Any, layout: Layout) -> dict[str, float]:
        """AUC and log-loss on the test rows."""
        twin = self.read_through(network, layout)
        return evaluate_clicks(twin, self.data.test, self.trial.settings.device)

    def sample_ids(self) -> torch.Tensor:
        """Ids of one batch, shape (batch, fields)."""
        rows = self.data.train.ids[: self.trial.settings.batch_size]
        return torch.from_numpy(np.array(rows, dtype=np.int64))


class RankingTask(Task):
    """Rank items for users.

    Where the data set holds out validation pairs, they choose the epoch; then
    everything is trained anew for so many epochs on all training pairs, and
    only that is tested.
    """

    networks = RANKING_NETWORKS
    data: InteractionData

    def build_network(self, table: CompressedEmbedding) -> Any:
        """A fresh ranking network; its graph is that of the training pairs."""
        return build_ranking_network(
            self.trial.model, table, self.data.num_users, self.data.train,
            **self.trial.layers,
        )  # fmt: skip

    def build_objective(self, settings: TrainingSettings) -> Objective:
        """BPR or sampled softmax."""
        return RankingObjective(self.data, settings, **self.trial.objective)

    def validate(self, network: Any, layout: Layout) -> dict[str, float]:
        """Recall@20 and NDCG@20 on the held-out pairs; training pairs masked."""
        twin = self.read_through(network, layout)
        return evaluate_ranking(twin, self.data.train, self.data.valid)

    def test(self, network: Any, layout: Layout) -> dict[str, float]:
        """Recall@20 and NDCG@20 on the test pairs; all known pairs masked."""
        twin = self.read_through(network, layout)
        known = np.concatenate([self.data.train, self.data.valid])
        return evaluate_ranking(twin, known, self.data.test)

    def sample_ids(self) -> torch.Tensor:
        """Users, positives and negatives of one step, in one row of ids."""
        objective = self.build_objective(
            dataclasses.replace(self.trial.settings, device="cpu")
        )
        return torch.cat(next(iter(objective.batches(np.random.default_rng(0)))))

    def for_testing(self, network: Any) -> Task:
        """All training pairs, for as many epochs as the hold-out chose."""
        if not len(self.data.valid):
            return self
        settings = dataclasses.replace(
            self.trial.settings, epochs=network.history.best + 1, patience=0
        )
        trial = dataclasses.replace(self.trial, settings=settings)
        return RankingTask(merge_hold_out(self.data), trial, self.seed)


@lru_cache(maxsize=4)
def merge_hold_out(data: InteractionData) -> InteractionData:
    """The data set with its validation pairs put back into the training pairs.

    The same object for the same data set, so that full tables trained on it are
    found again.
    """
    return dataclasses.replace(
        data, train=np.concatenate([data.train, data.valid]), valid=data.valid[:0]
    )


def make_task(data: Any, trial: Trial, seed: int) -> Task:
    """The task of a data set."""
    kind: type[Task] = RankingTask if is_top_n(data) else ClickTask
    return kind(data, trial, seed)
