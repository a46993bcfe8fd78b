"""What a method is: its options, when it compresses, what it may ask of the world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, get_args

import numpy as np
from torch import Tensor

from survey_code.embedding import CompressedEmbedding, Fitted, Network
from survey_code.layouts import Layout
from survey_code.options import Options, SearchOptions
from survey_code.spec import TableSpec

O = TypeVar("O", bound=Options)  # noqa: E741
S = TypeVar("S", bound=SearchOptions)
T = TypeVar("T", bound=CompressedEmbedding)

# What a plan or a search chose, by the names of the options.
Found = dict[str, object]


class Task(Protocol):
    """What a method may ask of the world around its table.

    Attributes
    ----------
    spec : TableSpec
    model : str
        The network's key, e.g. ``"mf"``.
    device : str
    seed : int
    """

    @property
    def spec(self) -> TableSpec: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102

    def train(self, table: CompressedEmbedding) -> Fitted:
        """Train a table and a fresh network around it in the usual loop."""

    def surround(self, table: CompressedEmbedding) -> Fitted:
        """A fresh network around a table that has learnt in another way."""

    def judge(self, network: Network) -> Judge:
        """Who says how good a network is that `train` has trained."""


class Judge(Protocol):
    """Says how good a network is that a search has trained.

    Everything is computed in the precision of training: a close call must not depend
    on the processor.
    """

    def prepare(self) -> None:
        """Put the network, table included, into that precision."""

    def loss(self) -> float:
        """Mean loss on the same few validation batches, with the table as it is."""

    def metric(self) -> float:
        """AUC or Recall@20 on all validation rows, with the table as it is."""

    def metric_after_training(self) -> float:
        """The metric once the network has trained on, as long as the search did.

        All weights come back as they were.
        """

    def gradients(self, weights: list[Tensor], batches: int) -> list[Tensor]:
        """Gradients of the mean loss of a few training batches."""

    def training_losses(self, batches: int) -> Iterator[Callable[[], Tensor]]:
        """The loss of each of a few training batches, with the table as it is when
        it is asked for.
        """


class Compression(Generic[O]):
    """What all stages share: options, and a plan that meets a budget.

    Attributes
    ----------
    options : type of Options
        What can be asked: the class in the brackets, ``Trained[MyOptions]``.
    """

    options: ClassVar[type[Options]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in vars(cls).get("__orig_bases__", ()):
            for part in get_args(base):
                if isinstance(part, type) and issubclass(part, Options):
                    cls.options = part
                elif isinstance(part, type) and issubclass(cls, Searched):
                    cls.search_table = part

    # Whether learning rates are anything to it.
    learns_by_gradient: ClassVar[bool] = True

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: O) -> Found:
        """The largest configuration inside the budget: what it chose, and no more.

        Parameters
        ----------
        spec : TableSpec
        ratio : float
            Bytes of the full table over the bytes that may be stored.
        options : Options
            What was asked.

        Raises
        ------
        OutOfReach
            If no configuration is small enough.
        """
        raise NotImplementedError


class AfterTraining(Compression[O]):
    """A method that compresses a table which has been trained."""

    @classmethod
    def prepare(
        cls, spec: TableSpec, options: O, seed: int
    ) -> CompressedEmbedding | None:
        """A full table that learns in the method's own way before it is compressed.

        Its `weight` is what `compress` is then given.  None, as most say: the full
        table that all such methods share.
        """
        return None

    @classmethod
    def compress(cls, weight: np.ndarray, spec: TableSpec, options: O) -> Layout:
        """A layout made of finite float32 rows, shape (num_embeddings, dim)."""
        raise NotImplementedError

    @classmethod
    def refit(
        cls, layout: Layout, weight: np.ndarray, spec: TableSpec, options: O
    ) -> Layout:
        """`compress`, but ids keep what tells them apart in a layout that it made of
        earlier rows: codes stay, say, and what they stand for is fitted to these rows.

        By default there is nothing to keep.
        """
        return cls.compress(weight, spec, options)


class Trained(CompressedEmbedding, Compression[O]):
    """A table that is trained as small as it will be deployed, or shrinks meanwhile.

    A subclass is made as ``Subclass(spec, options, seed)``; options that only a plan
    can say must be set.
    """

    @classmethod
    def make(cls, spec: TableSpec, seed: int = 0, **given: object) -> Self:
        """A table from options by name; what is open is as without a budget."""
        build: Callable[..., Self] = cls
        return build(spec, cls.options.of(cls.__name__, given).settled(), seed)

    def fit(self, task: Task) -> Fitted:
        """Learn from a task; methods that do not learn by gradients override this."""
        return task.train(self)

    def inherit(self, old: Self) -> None:
        """Begin where a table of the same options stands that has learnt.

        Its spec may have counted other reads: who has a row of its own by them, but
        had none, begins with what it read before.  Where counts decide nothing, all is
        as it was.
        """
        self.load_state_dict(old.state_dict())


class Searched(Trained[S], Generic[S, T]):
    """A table whose shape is searched first; then it is trained anew in that shape.

    The search trains the table that `searching` makes; `settle` reads off it what
    was found.  The subclass itself is the table that is trained afterwards.
    """

    # The second class in the brackets.
    search_table: ClassVar[type[CompressedEmbedding]]

    @classmethod
    def searches(cls, options: S) -> bool:
        """Whether these options ask for a search at all."""
        return True

    @classmethod
    def searching(cls, spec: TableSpec, options: S, seed: int) -> T:
        """A fresh table to search with, made of the same three."""
        build: Any = cls.search_table
        made: T = build(spec, options, seed)
        return made

    @classmethod
    def settle(cls, table: T, judge: Judge, spec: TableSpec, options: S) -> Found:
        """The options that the search found, within the budget."""
        raise NotImplementedError
