"""A data set with a network to put around a table: what methods learn from."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from survey_code.baselines import FullEmbedding, as_table
from survey_code.catalog import AFTER, SEARCH, Method
from survey_code.data.tasks import ClickData, DataSet, InteractionData, StreamData
from survey_code.embedding import (
    CompressedEmbedding,
    Fitted,
    History,
    Network,
    Script,
    decode_layout,
)
from survey_code.lab.trial import Trial
from survey_code.layouts import Layout
from survey_code.method import Judge, Trained
from survey_code.models import (
    CLICK_NETWORKS,
    RANKING_NETWORKS,
    ClickNetwork,
    RankingNetwork,
    build_click_network,
    build_ranking_network,
)
from survey_code.objectives import (
    ClickObjective,
    RankingObjective,
    evaluate_apart,
    evaluate_clicks,
    evaluate_ranking,
)
from survey_code.options import Options, SearchOptions
from survey_code.spec import TableSpec
from survey_code.training import Jury, Objective, TrainingSettings, meter_rows, train

# Full tables trained lately, shared by the methods that compress after training:
# those of three seeds, each without and with the hold-out of a ranking.  A data set is
# kept with its table, so that its id is not given to another.
_TRAINED: OrderedDict[tuple[object, ...], tuple[Fitted, float, DataSet]] = OrderedDict()
_TRAINED_LIMIT = 6


@dataclass(frozen=True)
class Learnt:
    """What a method made of a task.

    Parameters
    ----------
    fitted : Fitted
        The network as it learnt.
    table : CompressedEmbedding
        The table that was trained.
    layout : Layout
        What is deployed.
    seconds : dict
        ``"train"`` and ``"compress"``.
    histories : list of History
        Of each training it took, in order.
    """

    fitted: Fitted
    table: CompressedEmbedding
    layout: Layout
    seconds: dict[str, float]
    histories: list[History]

    @property
    def told(self) -> dict[str, object]:
        """How the training went, as the settings of a result tell it."""
        history = self.fitted.history
        ends = (h.ended for h in self.histories if h.ended == "limit")
        return {
            "epochs_trained": len(history.epochs),
            "best_epoch": history.best + 1,
            "ended": next(ends, history.ended),
        }


def open_data(data: str | DataSet | StreamData) -> DataSet:
    """A task from its name, or the data set as given; a stream as one task.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if isinstance(data, str):
        from survey_code.data import load

        data = load(data)
    if not isinstance(data, DataSet | StreamData):
        raise ValueError(f"data must be a name or a data set, got {data!r:.80}")
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


class Surroundings:
    """Data, network and training settings: what methods may ask for.

    Parameters
    ----------
    data : ClickData or InteractionData
    trial : Trial
    seed : int
        Of the table, the network and the order of the rows.
    scripts : sequence of Script, optional
        The steps and rates of each training in turn, made on other rows before.
    """

    networks: tuple[str, ...] = ()

    def __init__(
        self, data: DataSet, trial: Trial, seed: int, scripts: Sequence[Script] = ()
    ) -> None:
        if trial.model not in self.networks:
            raise ValueError(
                f"{data.name} is a {data.task} task; its networks are "
                f"{list(self.networks)}, got {trial.model!r}"
            )
        self.data = data
        self.trial = trial
        self.seed = seed
        self.scripts = tuple(scripts)
        # Of the trainings made, and the rows that a search saw.
        self.histories: list[History] = []
        self.rows_searched = 0
        self.model, self.device = trial.model, trial.settings.device
        check_device(self.device)
        # First-order weights count as storage too.
        per_id = 4 if trial.model in ("fm", "deepfm") else 0
        self.spec: TableSpec = dataclasses.replace(
            data.spec(trial.dim, trial.init_std),
            outside_bytes=per_id * data.num_embeddings,
            # LightGCN adds rows up before it compares: there lengths count.
            cosine=trial.model == "mf" and bool(trial.layers.get("normalize")),
        )

    def build_network(self, table: CompressedEmbedding) -> Network:
        """A fresh network around a table."""
        raise NotImplementedError

    def build_objective(self, settings: TrainingSettings) -> Objective[Any]:
        """What the network is to learn."""
        raise NotImplementedError

    def train(
        self,
        table: CompressedEmbedding,
        epochs: int | None = None,
        patience: int | None = None,
    ) -> Fitted:
        """Train a table and a fresh network around it.

        Parameters
        ----------
        table : CompressedEmbedding
        epochs, patience : int, optional
            Where they differ from the trial's settings.
        """
        settings = self.trial.settings
        settings = dataclasses.replace(
            settings,
            epochs=settings.epochs if epochs is None else epochs,
            patience=settings.patience if patience is None else patience,
        )
        network, objective = self.build_network(table), self.build_objective(settings)
        script = self.scripts[len(self.histories)] if self.scripts else None
        history = train(network, objective, settings, self.seed, script)
        self.histories.append(history)
        return Fitted(network, history)

    def surround(self, table: CompressedEmbedding) -> Fitted:
        """A fresh network around a table that has learnt in another way."""
        network = self.build_network(table).to(self.device).eval()
        return Fitted(network, History(epochs=[{}]))

    def judge(self, network: Network) -> Judge:
        """By the loss of predictions alone: what else is added to it in training
        would be less without any vectors.
        """
        settings = self.trial.settings.replace(l2=0.0, table_l2=0.0)
        return Jury(network, self.build_objective(settings), settings, self.seed)


class DataTask(Surroundings):
    """Everything around a table, and the way down: search, learn, compress, evaluate.

    `make_task` chooses the kind that a data set needs.
    """

    def search(self, method: Method, options: Options) -> Options:
        """Options with what a method found by its search, if it is one that searches.

        The search trains for a third of the usual epochs unless told otherwise, and
        uses all of them.
        """
        if method.stage != SEARCH or not isinstance(options, SearchOptions):
            return options
        kind, usual = method.load(), self.trial.settings.epochs
        if not kind.searches(options):
            return options
        table = kind.searching(self.spec, options, self.seed)
        epochs = options.search_epochs or -(-usual // 3)
        settings = self.trial.settings.replace(epochs=epochs, patience=0)
        with meter_rows() as meter:
            network = self.train(table, epochs, patience=0).network
            judge = Jury(network, self.build_objective(settings), settings, self.seed)
            found = kind.settle(table, judge, self.spec, options)
        self.rows_searched = meter.rows
        return options.replace(**found)

    def learn(self, method: Method, options: Options) -> Learnt:
        """Train, or take the full table that was trained; then make the layout."""
        self.histories = []
        if method.stage == AFTER or method.key == "full":
            fitted, train_seconds = self._train_source(method, options)
            table, start = fitted.network.table, time.perf_counter()
            layout = method.compress(table.weight.detach().cpu(), options, self.spec)
        else:
            table = method.build(self.spec, options, self.seed)
            start = time.perf_counter()
            usual = type(table).fit is Trained.fit
            fitted = self.train(table) if usual else table.fit(self)
            train_seconds, start = time.perf_counter() - start, time.perf_counter()
            layout = table.eval().freeze()
        seconds = {"train": train_seconds, "compress": time.perf_counter() - start}
        return Learnt(fitted, table, layout, seconds, self.histories)

    def _train_source(self, method: Method, options: Options) -> tuple[Fitted, float]:
        """The table that a method compresses after training, and how long it took."""
        own = method.load().prepare(self.spec, options, self.seed)
        if own is None:
            return self.train_full()
        fitted = self.train(own)
        return fitted, fitted.history.seconds

    def train_full(self) -> tuple[Fitted, float]:
        """The full table's network, trained once and shared, and how long it took."""
        own = (self.data.name, repr(self.trial), self.seed, self.scripts)
        key = (id(self.data), *own)
        if key not in _TRAINED:
            start = time.perf_counter()
            fitted = self.train(FullEmbedding(self.spec, seed=self.seed))
            _TRAINED[key] = (fitted, time.perf_counter() - start, self.data)
            while len(_TRAINED) > _TRAINED_LIMIT:
                _TRAINED.popitem(last=False)
        _TRAINED.move_to_end(key)
        fitted, seconds, _ = _TRAINED[key]
        self.histories = [fitted.history]
        return fitted, seconds

    def read_through(self, network: Network, layout: Layout) -> Network:
        """The network with its table replaced by the layout's rows."""
        twin = network.__class__.__new__(network.__class__)
        twin.__dict__.update(network.__dict__)
        twin._modules = {**network._modules, "table": as_table(decode_layout(layout))}
        return twin.to(self.device).eval()

    def validate(self, network: Network, layout: Layout) -> dict[str, float]:
        """Validation metrics with vectors read from the layout."""
        raise NotImplementedError

    def test(self, network: Network, layout: Layout) -> dict[str, float]:
        """Test metrics with vectors read from the layout."""
        raise NotImplementedError

    def sample_ids(self) -> torch.Tensor:
        """The ids that one training step reads."""
        raise NotImplementedError

    def for_testing(self, histories: Sequence[History]) -> DataTask:
        """The task to train again before the test is looked at: usually this."""
        return self


class ClickTask(DataTask):
    """Predict clicks."""

    networks = tuple(CLICK_NETWORKS)
    data: ClickData

    def build_network(self, table: CompressedEmbedding) -> ClickNetwork:
        """A fresh click network."""
        fields = len(self.data.field_starts) - 1
        return build_click_network(
            self.trial.model, table, fields, self.seed, **self.trial.layers
        )

    def build_objective(self, settings: TrainingSettings) -> Objective[Any]:
        """Binary cross-entropy."""
        return ClickObjective(self.data, settings)

    def validate(self, network: Network, layout: Layout) -> dict[str, float]:
        """AUC and log-loss on the validation rows."""
        twin = self.read_through(network, layout)
        return evaluate_clicks(twin, self.data.valid, self.device)

    def test(self, network: Network, layout: Layout) -> dict[str, float]:
        """AUC and log-loss on the test rows."""
        twin = self.read_through(network, layout)
        return evaluate_clicks(twin, self.data.test, self.device)

    def test_apart(
        self, network: Network, layout: Layout
    ) -> dict[str, dict[str, float]]:
        """`test` of rows of ids that training knew, ``"seen"``, and of rows with
        another, ``"unseen"``.
        """
        twin, rows = self.read_through(network, layout), self.data.test
        unseen = self.data.shows_unseen(rows)
        groups = {"seen": ~unseen, "unseen": unseen}
        return evaluate_apart(twin, rows, groups, self.device)

    def sample_ids(self) -> torch.Tensor:
        """Ids of one batch, shape (batch, fields)."""
        rows = self.data.train.ids[: self.trial.settings.batch_size]
        return torch.from_numpy(np.array(rows, dtype=np.int64))


class RankingTask(DataTask):
    """Rank items for users.

    Where the data set holds out validation pairs, they choose the epoch; then
    everything is trained anew on all training pairs, for as many steps and at the same
    rates, and only that is tested.
    """

    networks = RANKING_NETWORKS
    data: InteractionData

    def build_network(self, table: CompressedEmbedding) -> RankingNetwork:
        """A fresh ranking network; its graph is that of the training pairs."""
        return build_ranking_network(
            self.trial.model, table, self.data.num_users, self.data.train,
            **self.trial.layers,
        )  # fmt: skip

    def build_objective(self, settings: TrainingSettings) -> Objective[Any]:
        """BPR or sampled softmax."""
        return RankingObjective(self.data, settings, **self.trial.objective)

    def validate(self, network: Network, layout: Layout) -> dict[str, float]:
        """Recall@20 and NDCG@20 on the held-out pairs; training pairs masked."""
        twin = self.read_ranks(network, layout)
        return evaluate_ranking(twin, self.data.train, self.data.valid)

    def test(self, network: Network, layout: Layout) -> dict[str, float]:
        """Recall@20 and NDCG@20 on the test pairs; all known pairs masked."""
        twin = self.read_ranks(network, layout)
        known = np.concatenate([self.data.train, self.data.valid])
        return evaluate_ranking(twin, known, self.data.test)

    def read_ranks(self, network: Network, layout: Layout) -> RankingNetwork:
        """`read_through` of a network that ranks."""
        twin = self.read_through(network, layout)
        assert isinstance(twin, RankingNetwork)
        return twin

    def sample_ids(self) -> torch.Tensor:
        """Users, positives and negatives of one step, in one row of ids."""
        objective = self.build_objective(
            dataclasses.replace(self.trial.settings, device="cpu")
        )
        return torch.cat(next(iter(objective.batches(np.random.default_rng(0)))))

    def for_testing(self, histories: Sequence[History]) -> DataTask:
        """All training pairs, for the steps and at the rates that were chosen."""
        if not len(self.data.valid):
            return self
        scripts = [history.script for history in histories]
        return RankingTask(merge_hold_out(self.data), self.trial, self.seed, scripts)


@lru_cache(maxsize=4)
def merge_hold_out(data: InteractionData) -> InteractionData:
    """The data set with its validation pairs put back into the training pairs.

    The same object for the same data set, so that full tables trained on it are
    found again.
    """
    return dataclasses.replace(
        data, train=np.concatenate([data.train, data.valid]), valid=data.valid[:0]
    )


def make_task(data: DataSet, trial: Trial, seed: int) -> DataTask:
    """The task of a data set."""
    if isinstance(data, InteractionData):
        return RankingTask(data, trial, seed)
    return ClickTask(data, trial, seed)
