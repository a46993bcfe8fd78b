"""The contract: an embedding table that learns, and the network around it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.layouts import Layout, rebuild
from survey_code.layouts.files import Blueprint, check_blueprint

# What NumPy's generators take for a seed.
Seed = int | Sequence[int]


@dataclass
class TrainingStep:
    """What the training loop hands to a table's hooks, once a step.

    Parameters
    ----------
    loss : callable returning a scalar Tensor
        The loss of the batch just used, computed anew with the table as it is.
    validation_loss : callable returning a scalar Tensor
        The loss of the step's validation batch, the same at every call (for
        searches on two levels).
    network : Module
        The whole network, table included.
    learning_rate : float
        The table's learning rate in force.
    progress : float
        0 at the first step of training, 1 at the last.
    row_losses : callable returning a Tensor of shape (batch,)
        The loss of each row of the batch alone, where rows are what the task has
        (clicks); for methods that judge single ids.
    stop : callable
        Ends the training after this step: a search has found what it looked for.
    labels : callable returning a Tensor of shape (batch,)
        1 for each clicked row of the batch, 0 for the others, where rows are what the
        task has; for methods that count reads apart by what became of them.
    """

    loss: Callable[[], Tensor]
    validation_loss: Callable[[], Tensor]
    network: nn.Module
    learning_rate: float
    progress: float
    row_losses: Callable[[], Tensor] = lambda: torch.zeros(0)
    stop: Callable[[], None] = lambda: None
    labels: Callable[[], Tensor] = lambda: torch.zeros(0)


@dataclass(frozen=True)
class Regime:
    """How the training loop moves a table, told before the first step.

    Parameters
    ----------
    optimizer : {"adam", "rowwise_adagrad", "rowwise_adagrad_8bit", "sgd"}
        The rule for rows; a table that moves its rows itself follows it.
    sparse : bool
        Whether the optimiser takes sparse gradients.
    steps : int
        Of the whole training.
    epochs : int
        Into which they fall.
    """

    optimizer: str = "sgd"
    sparse: bool = False
    steps: int = 1000
    epochs: int = 1


class Diverged(ValueError):
    """A training has led to NaN or infinity."""


@dataclass(frozen=True)
class Script:
    """The steps of a training and their rates, to be made again on other rows.

    Parameters
    ----------
    parts : tuple of (int, float)
        Steps, and the factor of the learning rates in them.
    planned : int
        Steps over which a table's own schedule ran.
    """

    parts: tuple[tuple[int, float], ...]
    planned: int

    @property
    def steps(self) -> int:
        """Of all parts."""
        return sum(steps for steps, _ in self.parts)

    def rate_at(self, step: int) -> float:
        """The factor of the rates in a step, counted from 0."""
        for steps, factor in self.parts:
            if step < steps:
                return factor
            step -= steps
        return self.parts[-1][1]


@dataclass
class History:
    """What happened in training.

    Parameters
    ----------
    epochs : list of dict
        ``"train_loss"`` of each epoch, and its validation metrics where it was
        looked at.
    best : int
        Index of the epoch whose weights were kept.
    seconds : float
    rates : list of float
        Factor of the learning rates in each epoch.
    kept_rates : list of float
        The same of those epochs that led to the weights that were kept: a plateau
        goes back to the best ones before it goes on at lower rates.
    steps, planned : int
        Steps of an epoch, and those over which a table's own schedule runs.
    rows : int
        Training rows seen, each as often as it was.
    ended : {"epochs", "plateau", "limit", "table"}
        By what: all epochs made, no better metric, neither within `MOST_EPOCHS`
        times the epochs, or the table's own wish.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0
    rates: list[float] = field(default_factory=list)
    kept_rates: list[float] = field(default_factory=list)
    steps: int = 0
    planned: int = 0
    rows: int = 0
    ended: str = "epochs"

    @property
    def script(self) -> Script:
        """The steps and rates that led to the weights that were kept."""
        return Script(
            tuple((self.steps, rate) for rate in self.kept_rates), self.planned
        )


def refuse_diverged(freeze: Callable[[Any], Layout]) -> Callable[[Any], Layout]:
    """A table's `freeze` that looks at the parameters first.

    What NaN does to signs, codes or the nearest centroid is a row like any other.
    """

    @functools.wraps(freeze)
    def checked(table: nn.Module) -> Layout:
        # Tables that move their rows themselves keep what they learn in buffers.
        for name, weight in (*table.named_parameters(), *table.named_buffers()):
            if not weight.isfinite().all():
                raise Diverged(
                    f"{name} holds NaN or infinity, and cannot be frozen: the table "
                    "must be finite; did its training diverge?"
                )
        return freeze(table)

    return checked


# What a table does within a step, or for it.
IN_A_STEP = {"embed", "penalty", "advance", "validation_step"}


class CompressedEmbedding(nn.Module):
    """An embedding table that can be trained, and then frozen into a layout.

    A subclass implements `embed` and `freeze`; the other methods are hooks that
    the training loop calls, and do nothing where a method does not need them.

    Parameters
    ----------
    num_embeddings : int
        Number of ids; ids are ``0 .. num_embeddings - 1``.
    embedding_dim : int
        Length of the vector that `forward` returns for one id.
    """

    # Serve any id from 0 up (tables that compute their rows can).
    open_ids: bool = False
    # Whether unrelated ids, a user and an item say, may be given the same rows.
    shares_rows: bool = False
    # Whether each step of training does the same with other ids: it then reads no
    # Python number that changes, asks no tensor for one, and draws by torch alone.  A
    # GPU records such a step once and replays it.  A class that writes one of
    # `IN_A_STEP` anew says so for itself.
    steady: bool = False
    # Progress at which the schedule of `advance` is over, 0 where there is none.
    # Only epochs that end there or later can be the best one.
    schedule_end: float = 0.0
    # What the training loop said in `begin`.
    regime: Regime = Regime()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = vars(cls)
        if "freeze" in own:
            setattr(cls, "freeze", refuse_diverged(own["freeze"]))  # noqa: B010
        if "steady" not in own and IN_A_STEP & set(own):
            cls.steady = False

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = int(num_embeddings)
        self.embedding_dim = int(embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of ids.

        Parameters
        ----------
        ids : Tensor of int64 or int32, any shape

        Returns
        -------
        Tensor of float32, shape (*ids.shape, embedding_dim)

        Raises
        ------
        IndexError
            If an id is negative or not below `num_embeddings`.
        ValueError
            If ids are not integers.
        """
        return self.embed(self.check_ids(ids))

    if TYPE_CHECKING:  # nn.Module's own says Any

        def __call__(self, ids: Tensor) -> Tensor:
            """`forward`."""

    def check_ids(self, ids: Tensor) -> Tensor:
        """The ids as int64, or one clear error."""
        ids = torch.as_tensor(ids)
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers, got dtype {ids.dtype}")
        ids = ids.to(torch.int64)
        if ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(ids))
            beyond = not self.open_ids and high >= self.num_embeddings
            if low < 0 or beyond:
                raise IndexError(
                    f"id {low if low < 0 else high} is out of range for a table of "
                    f"{self.num_embeddings} rows"
                )
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors of checked ids: int64 (*shape) -> float32 (*shape, dim)."""
        raise NotImplementedError

    def freeze(self) -> Layout:
        """What is deployed; its look-up equals `forward` in eval mode.

        Raises
        ------
        ValueError
            If a parameter is NaN or infinite; this is checked for every subclass.
        """
        raise NotImplementedError

    # -- hooks of the training loop -----------------------------------------

    def begin(self, regime: Regime) -> None:
        """Hear how this table, and those inside it, are going to be moved."""
        for part in self.modules():
            if isinstance(part, CompressedEmbedding):
                part.regime = regime

    def penalty(self) -> Tensor:
        """A scalar that is added to the loss; 0 where the method has none."""
        return torch.zeros(())

    def advance(self, progress: float) -> None:
        """Move schedules on (temperature, pruning rate); 0 <= progress <= 1."""

    def after_step(self, step: TrainingStep) -> None:
        """Work after the optimiser's step: proximal steps, integer write-back,
        re-clustering, promotion.
        """

    def renewed_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Rows that began anew since this was last asked: parameters, and row numbers.

        The loop asks before the optimiser's step, which then moves them as it does
        rows that were never read.
        """
        return []

    def validation_step(self, step: TrainingStep) -> None:
        """One step of a search that learns from validation batches.

        A validation batch is drawn only where its loss is asked for.
        """

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The table's parameters as the optimiser wants them; a group may carry
        its own ``"lr"``.
        """
        return [{"params": list(self.parameters()), "lr": learning_rate}]


class Network(nn.Module):
    """A network around a table, which it reads vectors from.

    Parameters
    ----------
    table : CompressedEmbedding
    """

    def __init__(self, table: CompressedEmbedding) -> None:
        super().__init__()
        self.table = table


@dataclass(frozen=True)
class Fitted:
    """A network that has learnt, table included, and how its training went."""

    network: Any
    history: History


class FrozenEmbedding(CompressedEmbedding):
    """A layout behind the same call: a table that is read but not trained.

    Its `state_dict` holds the layout's arrays, by their names in a file with dots for
    slashes, and its description; all are tensors on the CPU.  A state is loaded into
    a module whose layout is of the same kind and size, whatever its rows: all of it,
    checked as a file is, or not at all.

    ``.to(device)`` moves the layout.  ``.half()`` and ``.to(dtype)`` change the type of
    the vectors that are returned, never the stored numbers.  ``torch.jit.trace`` is an
    error, since it would keep the example's rows for all ids; so is ``torch.export``,
    and ``torch.compile`` is not supported yet.

    Parameters
    ----------
    layout : Layout
        A layout on the CPU takes CPU ids; after ``to_gpu()`` it takes CUDA ids.

    Raises
    ------
    ValueError
        If it is given anything else.

    Examples
    --------
    >>> import numpy as np
    >>> from survey_code.layouts import DenseLayout
    >>> table = FrozenEmbedding(DenseLayout.from_weight(np.eye(3)))
    >>> list(table.state_dict())
    ['values', 'layout_description']
    >>> table.half()(torch.tensor([2]))
    tensor([[0., 0., 1.]], dtype=torch.float16)
    """

    def __init__(self, layout: Layout) -> None:
        if not isinstance(layout, Layout):
            raise ValueError(f"layout must be a Layout, got {type(layout).__name__}")
        super().__init__(layout.num_embeddings, layout.embedding_dim)
        self.layout = layout
        self.kind = torch.float32  # of the vectors that are returned

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors read from the layout, without gradients; ids as for any table.

        Raises
        ------
        RuntimeError
            Under ``torch.jit.trace``.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(
                "a FrozenEmbedding cannot be traced: the trace would return the rows "
                "of the example's ids whatever it is asked for"
            )
        return self.embed(torch.as_tensor(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """The layout's look-up, which checks the ids."""
        return self.layout.lookup(ids).to(self.kind)

    def freeze(self) -> Layout:
        """The layout itself."""
        return self.layout

    def extra_repr(self) -> str:
        """What the printed module shows."""
        return repr(self.layout)

    # -- torch's ways to move, change and keep a module -----------------------

    def __getstate__(self) -> dict[str, Any]:
        held, on_gpu = self.layout.to_cpu(), self.layout.on_gpu
        return {**self.__dict__, "layout": held, "on_gpu": on_gpu}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        on_gpu = own.pop("on_gpu") and torch.cuda.is_available()
        super().__setstate__(own)
        if on_gpu:
            self.layout = self.layout.to_gpu()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``.to``, ``.half`` and their kin do to each tensor, done to all."""
        place = "cuda" if self.layout.on_gpu else "cpu"
        probe = fn(torch.zeros(1, dtype=self.kind, device=place))
        if not probe.is_floating_point() or probe.device.type not in ("cpu", "cuda"):
            raise ValueError(
                "a FrozenEmbedding returns floating-point numbers on a processor or a "
                f"GPU, and cannot become {probe.dtype} on {probe.device}"
            )
        if probe.is_cuda:
            with torch.cuda.device(probe.device):
                self.layout = self.layout.to_gpu()
        else:
            self.layout = self.layout.to_cpu()
        self.kind = probe.dtype
        return super()._apply(fn, recurse)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        held = self.layout.to_cpu()
        for name, array in held.arrays().items():
            destination[prefix + name.replace("/", ".")] = as_tensor(array)
        words = json.dumps(held.blueprint(), sort_keys=True).encode()
        destination[prefix + DESCRIPTION] = as_tensor(np.frombuffer(words, np.uint8))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {
            name.removeprefix(prefix): part
            for name, part in state_dict.items()
            if name.startswith(prefix)
        }
        if not own:
            missing_keys.append(prefix + DESCRIPTION)
            return
        try:
            layout = read_state(own, self.layout)
        except ValueError as error:
            error_msgs.append(f"{prefix or 'state'}: {error}")
            return
        self.layout = layout.to_gpu() if self.layout.on_gpu else layout


# In a state, the key of the layout's description.
DESCRIPTION = "layout_description"


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over an array, or over a copy where the array cannot be written to."""
    writable = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if writable else array.copy())


def read_state(state: Mapping[str, Any], like: Layout) -> Layout:
    """The layout of a `FrozenEmbedding`'s state, of the same kind and size as another.

    Raises
    ------
    ValueError
        If something is missing, too many, damaged, or of another kind or size.
    """
    if DESCRIPTION not in state:
        raise ValueError(f"{DESCRIPTION} is missing, which says what the arrays are")
    # Copies: the state may be changed afterwards.
    arrays = {}
    for name, part in state.items():
        if not isinstance(part, Tensor):
            raise ValueError(f"{name} is no tensor, but {type(part).__name__}")
        arrays[name] = part.detach().cpu().contiguous().numpy().copy()
    words = arrays.pop(DESCRIPTION)
    if words.dtype != np.uint8 or words.ndim != 1:
        raise ValueError(f"{DESCRIPTION} must hold bytes, got {words.dtype}")
    try:
        blueprint = check_blueprint(json.loads(words.tobytes()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{DESCRIPTION} is damaged ({error})") from error
    named = {name.replace(".", "/"): array for name, array in arrays.items()}
    wrong = compare_blueprints(blueprint, like.blueprint())
    if wrong := wrong or compare_arrays(named, like.to_cpu().arrays()):
        raise ValueError(f"the state does not fit: {wrong}")
    return rebuild(blueprint, named)


def compare_arrays(
    given: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray]
) -> str | None:
    """In what the arrays of a state differ from a layout's, in words.

    One that is missing may be one that a layout can do without: its rows are others.
    """
    if given.keys() != own.keys():
        return f"arrays {sorted(given)}, expected {sorted(own)}"
    for name, array in own.items():
        found = given[name]
        if (found.shape, found.dtype) != (array.shape, array.dtype):
            return (
                f"{name} of shape {found.shape} and {found.dtype}, expected "
                f"{array.shape} and {array.dtype}"
            )
    return None


def compare_blueprints(given: Blueprint, own: Blueprint) -> str | None:
    """In what the description of one layout differs from another's, in words."""
    for what in ("layout", "version"):
        if given[what] != own[what]:
            return f"{what} {given[what]!r}, expected {own[what]!r}"
    if given["shape"] != own["shape"]:
        return f"{given['layout']} of {given['shape']}, expected {own['shape']}"
    if given["parts"].keys() != own["parts"].keys():
        return f"parts {sorted(given['parts'])}, expected {sorted(own['parts'])}"
    found = (
        compare_blueprints(part, own["parts"][name])
        for name, part in given["parts"].items()
    )
    return next((wrong for wrong in found if wrong), None)


def decode_layout(layout: Layout, chunk: int = 65536) -> np.ndarray:
    """All rows of a layout, shape (num_embeddings, embedding_dim), float32."""
    layout = layout.to_cpu()
    table = np.empty((layout.num_embeddings, layout.embedding_dim), np.float32)
    for start in range(0, len(table), chunk):
        stop = min(start + chunk, len(table))
        table[start:stop] = layout.lookup(np.arange(start, stop))
    return table


def pick_rows(ids: Tensor, weight: Tensor, sparse: bool = False) -> Tensor:
    """Rows of a weight, a row for each id: the shape of the ids and an axis of columns.

    As torch's `embedding`, whose gradient on a GPU sorts the ids first, so that sums
    have an order; for a batch of some thousand ids that takes longer than the step's
    other kernels together, and here they are added as they come.
    """
    if sparse or not weight.is_cuda:
        return functional.embedding(ids, weight, sparse=sparse)
    return weight.index_select(0, ids.flatten()).view(*ids.shape, *weight.shape[1:])


def draw_normal(shape: tuple[int, ...], std: float, seed: Seed) -> Tensor:
    """Normal numbers of NumPy's generator: torch's own differ between CPU types."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return torch.from_numpy(drawn)


def as_float32(weight: Tensor) -> np.ndarray:
    """A copy of a parameter as NumPy's float32."""
    array: np.ndarray = weight.detach().cpu().to(torch.float32).numpy().copy()
    return array
