"""What every method promises, put to one of them: what a newcomer has to pass.

The tests of the catalogue put the same to every method of the package.  Each is tried
on two small tables of made-up counts, pairs and content, without any data.
"""

from __future__ import annotations

import pickle
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from survey_code.baselines import FullEmbedding
from survey_code.catalog import AFTER, DURING, SEARCH, Method
from survey_code.data.tasks import ClickData, ClickRows
from survey_code.embedding import CompressedEmbedding, decode_layout
from survey_code.lab.task import make_task
from survey_code.lab.trial import Trial
from survey_code.layouts import Layout, header_bytes, load_layout
from survey_code.layouts.layout import Stored
from survey_code.options import Options
from survey_code.spec import OutOfReach, TableSpec
from survey_code.training import TrainingSettings

# Ratios at which tables are asked for.
ASKED_RATIOS = (1.0, 2.0, 3.0, 4.0, 7.5, 10.0, 30.0)
# Where one table is enough, unless it is out of reach.
ONE_RATIO = 4.0
# Nothing is left of a table at this ratio.
NOTHING = 1e9
# Rows and columns of the tables; the second has fewer rows than most things want.
SHAPES = ((5000, 16), (37, 6))
# Layouts that multiply matrices; all others gather rows, and agree to the last bits.
PRODUCTS = ("tensor_train", "generator", "grouped", "turned")
# What a search is made with.
SHORT_TRIAL = Trial(
    "dcnv2", 16, TrainingSettings(epochs=3, batch_size=64, table_learning_rate=0.02),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip


class Broken(AssertionError):
    """A promise is not kept; the message says how."""


def make_small_spec(rows: int, dim: int) -> TableSpec:
    """Two fields, skewed counts, pairs, content: all that a method may ask for."""
    rng = np.random.default_rng(0)
    split = rows // 3
    pairs = np.stack(
        [rng.integers(split, size=4 * rows), rng.integers(split, rows, size=4 * rows)],
        1,
    )
    counts = np.floor(rows / (1 + rng.permutation(rows)))
    content = np.random.default_rng(1).normal(size=(rows, 4)).astype(np.float32)
    return TableSpec(
        rows, dim, np.array([0, split, rows]), counts.astype(np.int64),
        np.unique(pairs, axis=0), content=content,
    )  # fmt: skip


def draw_clicks(spec: TableSpec) -> ClickData:
    """A few clicks on the ids of a spec, to search on."""
    rng = np.random.default_rng(1)
    starts = spec.field_starts
    parts = []
    for rows in (200, 60, 0):
        columns = [rng.integers(*ends, size=rows) for ends in pairwise(starts)]
        labels = (rng.random(rows) < 0.5).astype(np.float32)
        parts.append(ClickRows(np.stack(columns, 1), labels))
    train, valid, test = parts
    return ClickData("clicks", ("user", "item"), starts, train, valid, test)


class Subject:
    """A method and a small table, and what it makes of that, each once.

    Parameters
    ----------
    method : Method
    spec : TableSpec
    """

    def __init__(self, method: Method, spec: TableSpec) -> None:
        self.method, self.spec = method, spec
        self._found: dict[float, Options] = {}
        self._layouts: dict[tuple[str, bytes], Layout] = {}

    @property
    def trained(self) -> bool:
        """Whether it is a table that is trained, after a search or without one."""
        return bool({DURING, SEARCH} & set(self.method.stages))

    def reaches(self, ratio: float) -> bool:
        """Whether a plan is made."""
        with suppress(Exception):  # a plug-in's own code may raise anything
            self.method.plan(self.spec, ratio)
            return True
        return False

    @cached_property
    def ratio(self) -> float:
        """`ONE_RATIO`, or the nearest below that is in reach.

        Raises
        ------
        Broken
            If there is none.
        """
        named: list[float] = []
        try:
            self.method.plan(self.spec, ONE_RATIO)
        except OutOfReach as error:
            named += [] if error.nearest is None else [error.nearest]
        except Exception:  # which `name_reach` shows
            named = []
        for ratio in (ONE_RATIO, *named, 3.0, 2.0, 1.0):
            if self.reaches(ratio):
                return ratio
        rows, dim = self.spec.num_embeddings, self.spec.embedding_dim
        raise Broken(f"it plans nothing for a table of {rows} x {dim}")

    def options(self, ratio: float) -> Options:
        """Options for a ratio, searched for where the method searches; found once."""
        if ratio not in self._found:
            options = self.method.plan(self.spec, ratio)
            if self.method.stage == SEARCH:
                task = make_task(draw_clicks(self.spec), SHORT_TRIAL, 0)
                task.spec = self.spec
                options = task.search(self.method, options)
            self._found[ratio] = options
        return self._found[ratio]

    def table(self, seed: int = 0) -> CompressedEmbedding:
        """A fresh table at `ratio`."""
        made: CompressedEmbedding = self.method.build(
            self.spec, self.options(self.ratio), seed
        )
        return made

    def layout(
        self, ratio: float, stages: tuple[str, ...] = (DURING, SEARCH, AFTER)
    ) -> Layout:
        """The layout at a ratio, by the first of some stages that the method has;
        made once for the same options.
        """
        stage = next(stage for stage in stages if stage in self.method.stages)
        options = self.options(ratio)
        made = (stage, pickle.dumps(options))
        if made not in self._layouts:
            self._layouts[made] = self.make(options, stage)
        return self._layouts[made]

    def make(self, options: Options, stage: str) -> Layout:
        """A layout of these options."""
        if stage == AFTER:
            return self.method.compress(
                FullEmbedding(self.spec).weight, options, self.spec
            )
        return finish_table(self.method.build(self.spec, options))

    def sample(self) -> Layout:
        """The layout at `ratio`."""
        return self.layout(self.ratio)


def finish_table(table: CompressedEmbedding) -> Layout:
    """The layout of a table whose schedules have run."""
    for progress in (0.0, 0.5, 1.0):
        table.advance(progress)
    return table.eval().freeze()


# -- the promises ----------------------------------------------------------------


def keep_budget(subject: Subject) -> None:
    """What is planned fits, at each ratio in reach and with each value worth trying."""
    spec, method = subject.spec, subject.method
    for ratio in filter(subject.reaches, ASKED_RATIOS):
        require_fit(spec, ratio, subject.layout(ratio), f"ratio {ratio:g}")
    if method.stage == SEARCH:
        return  # each value would be a search of its own
    stage, ratio = method.stage, subject.ratio
    for name, values in method.load().options.grid().items():
        for value in values:
            # Some values do not go with such a table: that is a plan's to say.
            with suppress(ValueError):
                options = method.plan(spec, ratio, **{name: value})
                where = f"ratio {ratio:g} with {name}={value!r}"
                require_fit(spec, ratio, subject.make(options, stage), where)


def require_fit(spec: TableSpec, ratio: float, layout: Layout, where: str) -> None:
    """Raise `Broken` unless a layout has all rows and is within the budget."""
    budget, rows = spec.budget(ratio), spec.num_embeddings
    if layout.num_embeddings != rows:
        raise Broken(f"at {where} the table has {layout.num_embeddings} of {rows} rows")
    if layout.nbytes > budget:
        raise Broken(
            f"at {where} the table takes {layout.nbytes:,} bytes of {budget:,}"
        )


def name_reach(subject: Subject) -> None:
    """What is out of reach is an OutOfReach that names the nearest ratio in reach."""
    for ratio in (*ASKED_RATIOS, NOTHING):
        nearest = find_named(subject, ratio)
        if nearest is None:
            continue
        if nearest >= ratio:
            raise Broken(f"at ratio {ratio:g} it names {nearest:g}, which is no lower")
        if not subject.reaches(nearest):
            raise Broken(f"it names {nearest:g} as in reach, and refuses it")
    if nearest is not None and subject.reaches(nearest * 1.0001 + 0.002):
        raise Broken(f"it names {nearest:g} as the highest, and takes a higher one")


def find_named(subject: Subject, ratio: float) -> float | None:
    """The nearest ratio that a plan names where it refuses one; None where it refuses
    nothing, or reaches nothing at all.
    """
    try:
        subject.method.plan(subject.spec, ratio)
    except OutOfReach as error:
        return error.nearest
    except ValueError as error:
        raise Broken(
            f"ratio {ratio:g} is refused by {type(error).__name__}, not OutOfReach "
            f"({error}); spec.require raises the right one"
        ) from error
    if ratio == NOTHING:
        raise Broken(f"ratio {ratio:g} is accepted, which leaves nothing")
    return None


def repeat_seed(subject: Subject) -> None:
    """The same seed is the same table, whatever others have drawn."""
    tables = []
    for drawn in (0, 1):
        with seed_all(drawn):
            if subject.trained:
                table = subject.table(seed=3)
                state = table.state_dict()
                layout = finish_table(table)
            else:
                state = {}
                layout = subject.make(subject.options(subject.ratio), AFTER)
        tables.append((state, decode_layout(layout)))
    (state, rows), (twin, again) = tables
    if state.keys() != twin.keys():
        raise Broken("two tables of one seed do not hold the same tensors")
    for name, value in state.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        if not same(value, twin[name]):
            raise Broken(f"two tables of one seed differ in {name}")
    if not np.array_equal(rows, again):
        raise Broken("two tables of one seed are read as different rows")


@contextmanager
def seed_all(seed: int) -> Iterator[None]:
    """The generators that a process shares, seeded; as they were afterwards."""
    numbers, words = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)  # noqa: NPY002
            random.setstate(words)


def freeze_alike(subject: Subject) -> None:
    """In eval mode `forward` gives the rows that `freeze().lookup` reads."""
    table, rows = subject.table(), subject.spec.num_embeddings
    layout = finish_table(table)
    ids = torch.from_numpy(np.random.default_rng(1).permutation(rows))
    given = table(ids)
    shape = (rows, table.embedding_dim)
    if given.shape != shape or given.dtype != torch.float32:
        raise Broken(
            f"forward gives {given.dtype} of shape {tuple(given.shape)} for {rows} "
            f"ids, not float32 of shape {shape}"
        )
    require_close("forward", given.detach().numpy(), layout, ids.numpy())


def require_close(
    name: str, given: np.ndarray, layout: Layout, ids: np.ndarray
) -> None:
    """Raise `Broken` unless rows are those of a layout's look-up."""
    found = layout.lookup(ids)
    if given.shape != found.shape:
        raise Broken(f"{name} gives shape {given.shape}, the look-up {found.shape}")
    tolerance = 1e-4 if multiplies(layout) else 1e-6
    apart = np.abs(given - found)
    if (apart > tolerance * (np.abs(found) + np.abs(found).max())).any():
        worst = float(apart.max())
        raise Broken(
            f"{name} and the look-up of the frozen table are {worst:.3g} apart"
        )


def multiplies(layout: Stored) -> bool:
    """Whether a layout, or one inside it, multiplies matrices to read a row."""
    parts = (part for part in layout.held().values() if isinstance(part, Stored))
    return layout.name in PRODUCTS or any(map(multiplies, parts))


def weigh_file(subject: Subject) -> None:
    """`nbytes` is exactly what `save` writes, the header aside."""
    layout = subject.sample()
    with saved(layout) as path:
        written = path.stat().st_size - header_bytes(path)
    if written != layout.nbytes:
        raise Broken(f"nbytes says {layout.nbytes:,}, save writes {written:,} bytes")


def load_alike(subject: Subject) -> None:
    """A saved table is loaded as the same rows."""
    layout, ids = subject.sample(), np.arange(subject.spec.num_embeddings)
    with saved(layout) as path:
        again = load_layout(path)
    # Products depend on where arrays lie in memory, in their last bits.
    require_close("the saved table", again.lookup(ids), layout, ids)


@contextmanager
def saved(layout: Layout) -> Iterator[Path]:
    """A file of a layout, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        layout.save(path)
        yield path


def refuse_ids(subject: Subject) -> None:
    """An id out of range is an IndexError, and what is no integer a ValueError."""
    rows, layout = subject.spec.num_embeddings, subject.sample()
    readers: list[tuple[str, Callable[[torch.Tensor], object], bool]] = [
        ("lookup", lambda ids: layout.lookup(ids.numpy()), is_open(layout))
    ]
    if subject.trained:
        table = subject.table().eval()
        readers.append(("forward", table, table.open_ids))
    wrong = [
        (torch.tensor([-1]), IndexError, False),
        (torch.tensor([rows]), IndexError, True),
        (torch.tensor([2**31 - 1], dtype=torch.int32), IndexError, True),
        (torch.tensor([2**62]), IndexError, True),
        (torch.tensor([0.0]), ValueError, False),
        (torch.tensor([True]), ValueError, False),
    ]
    for name, read, open_ids in readers:
        for ids, error, high in wrong:
            if not (high and open_ids):
                require_error(f"{name} of id {ids.item()}", lambda: read(ids), error)  # noqa: B023


def is_open(layout: Layout) -> bool:
    """Whether a layout serves ids beyond its rows."""
    return bool(getattr(layout, "open_ids", False))


def require_error(
    where: str, call: Callable[[], object], wanted: type[Exception]
) -> None:
    """Raise `Broken` unless a call raises an error of this kind."""
    try:
        call()
    except wanted:
        return
    except Exception as error:
        raise Broken(
            f"{where} is a {type(error).__name__}, not a {wanted.__name__}"
        ) from error
    raise Broken(f"{where} raises no {wanted.__name__}")


def pool_alike(subject: Subject) -> None:
    """A bag is what its rows come to, looked up one by one."""
    layout, rows = subject.sample(), subject.spec.num_embeddings
    ids = np.random.default_rng(2).integers(0, rows, size=24).reshape(6, 4)
    single = layout.lookup(ids)
    wanted = {"sum": single.sum(1), "mean": single.mean(1), "max": single.max(1)}
    tolerance = 4e-4 if multiplies(layout) else 1e-5
    for mode, pooled in wanted.items():
        given = layout.bag(ids.ravel(), np.arange(0, 24, 4), mode=mode)
        scale = float(np.abs(single).max())
        if not np.allclose(given, pooled, rtol=tolerance, atol=tolerance * scale):
            worst = float(np.abs(given - pooled).max())
            raise Broken(f"bags of mode {mode!r} and look-ups are {worst:.3g} apart")


def stay_frozen(subject: Subject) -> None:
    """What is frozen does not follow the table that learns on."""
    table = subject.table().eval()
    layout = table.freeze()
    kept = {name: np.array(array) for name, array in layout.arrays().items()}
    with torch.no_grad():
        for part in (*table.parameters(), *table.buffers()):
            part.copy_(torch.ones_like(part))
    for name, array in layout.arrays().items():
        if not np.array_equal(array, kept[name]):
            raise Broken(f"{name} changes when the table learns on: freeze a copy")


# -- all of them -----------------------------------------------------------------


@dataclass(frozen=True)
class Promise:
    """One thing that every method promises.

    Parameters
    ----------
    name, words : str
        For a table, and what it means.
    keep : callable
        Raises where a subject does not keep it.
    of_tables : bool
        Whether only tables that are trained promise it.
    """

    name: str
    words: str
    keep: Callable[[Subject], None]
    of_tables: bool = False


PROMISES = (
    Promise("budget", "At each ratio in its reach the table fits the budget, also with "
            "each value of its options that is worth trying.", keep_budget),
    Promise("reach", "A ratio out of reach is an OutOfReach error, which names the "
            "nearest one that can be asked for.", name_reach),
    Promise("seed", "The same seed gives the same table, whatever else was drawn.",
            repeat_seed),
    Promise("forward", "In eval mode, forward gives the rows that freeze().lookup "
            "reads.", freeze_alike, of_tables=True),
    Promise("frozen", "What is frozen does not follow the table.", stay_frozen,
            of_tables=True),
    Promise("bytes", "nbytes is exactly what save() writes, the header aside.",
            weigh_file),
    Promise("file", "A saved table is loaded as the same rows.", load_alike),
    Promise("ids", "An id out of range is an IndexError.", refuse_ids),
    Promise("bags", "A bag is what its rows come to, looked up one by one.",
            pool_alike),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept.

    Parameters
    ----------
    name, words : str
        The promise's.
    kept : bool
    said : str
        How it is broken; empty where it is kept.
    """

    name: str
    words: str
    kept: bool
    said: str = ""


def check_promises(method: Method) -> list[Verdict]:
    """Put every promise to a method, on small tables of two shapes.

    Parameters
    ----------
    method : Method

    Returns
    -------
    list of Verdict
        One for each of `PROMISES` that such a method makes.  A shape for which it
        plans nothing at all is left out, if it plans for the other.
    """
    subjects = [Subject(method, make_small_spec(*shape)) for shape in SHAPES]
    able = [one for one in subjects if any(map(one.reaches, ASKED_RATIOS))]
    verdicts = []
    for promise in PROMISES:
        if promise.of_tables and not subjects[0].trained:
            continue
        said = next(filter(None, (hear(promise, one) for one in able or subjects)), "")
        verdicts.append(Verdict(promise.name, promise.words, not said, said))
    return verdicts


def hear(promise: Promise, subject: Subject) -> str:
    """How a subject breaks a promise; nothing where it keeps it."""
    shape = f"{subject.spec.num_embeddings} x {subject.spec.embedding_dim}"
    try:
        promise.keep(subject)
    except Broken as broken:
        return f"{broken} (table of {shape})"
    except Exception as error:
        return f"{type(error).__name__}: {error} (table of {shape})"
    return ""
