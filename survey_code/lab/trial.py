"""How a data set is used: the network, its settings, and what they are for each set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from survey_code.checks import check_number, check_range
from survey_code.data.tasks import DataSet, StreamData
from survey_code.models import RANKING_NETWORKS
from survey_code.training import TrainingSettings


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

    Raises
    ------
    ValueError
        If a part is not what it must be.
    """

    model: str
    dim: int
    settings: TrainingSettings
    layers: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise ValueError(f"model must be a word, got {self.model!r}")
        if not isinstance(self.settings, TrainingSettings):
            raise ValueError(
                f"settings must be TrainingSettings, got {self.settings!r:.80}"
            )
        for name in ("layers", "objective"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(
                    f"{name} must be names and values, got {getattr(self, name)!r:.80}"
                )
        dim = check_range("embedding_dim", self.dim, 1)
        object.__setattr__(self, "dim", dim)
        std = check_number("init_std", self.init_std, above=0)
        object.__setattr__(self, "init_std", std)
        # A list read from a file is the tuple that was written.
        layers = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.layers.items()
        }
        object.__setattr__(self, "layers", layers)

    def adjust(self, **changes: Any) -> Trial:
        """The trial with other settings."""
        return dataclasses.replace(self, settings=self.settings.replace(**changes))

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
        TrainingSettings(epochs=5, batch_size=1024, learning_rate=5e-2, patience=0,
                         decay=1.0, schedule="linear", precision="float64"),
        {"normalize": True},
        {"loss": "softmax", "negatives": 64, "temperature": 0.2}, init_std=0.1,
    ),
    # LightGCN as published, inner products and BPR over users drawn alike, but with
    # larger batches and steps: its own take several times as long to end as well.
    ("gowalla", "lightgcn"): Trial(
        "lightgcn", 64,
        TrainingSettings(epochs=20, batch_size=16384, learning_rate=1e-2, l2=1e-4,
                         evaluate_every=20, patience=2, tolerance=2e-3, decay=0.3,
                         drops=2, schedule="plateau"),
        {"layers": 3}, {"loss": "bpr", "draws": "users"}, init_std=0.1,
    ),
}  # fmt: skip


def default_trial(data: DataSet | StreamData, model: str | None = None) -> Trial:
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


def is_top_n(data: DataSet | StreamData) -> bool:
    """Whether a data set asks for a ranking of items."""
    return bool(data.task == "top-n")


def is_ranking(model: str) -> bool:
    """Whether a network ranks items."""
    return model in RANKING_NETWORKS


def adapt_trial(
    trial: Trial,
    model: str | None,
    dim: int | None,
    device: str | None,
    settings: dict[str, Any] | None,
) -> Trial:
    """A trial with some of its parts replaced."""
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"settings must be names and values, got {settings!r:.80}")
    changes = dict(settings or {})
    if device is not None:
        changes["device"] = device
    unknown = sorted(map(str, set(changes) - set(TrainingSettings.names())))
    if unknown:
        raise ValueError(
            f"unknown training setting {unknown[0]!r}; settings: "
            f"{', '.join(TrainingSettings.names())}"
        )
    adapted = trial.settings.replace(**changes)
    return dataclasses.replace(
        trial,
        model=trial.model if model is None else model,
        dim=trial.dim if dim is None else dim,
        settings=adapted,
    )
