"""The hashed layout: an id is turned into a few row numbers of small shared tables.

Every scheme of the hashing family reads rows in the same three steps:

1. mix the id's bits (or not), 2. take a digit ``(mixed // divisor) % modulus``,
3. combine the rows that the digits name.

The hashing trick mixes and takes one digit; quotient-remainder takes two digits
of the plain id; double hashing takes two digits of two mixtures.  Two things can be
added: a sign, and a few weights per id that multiply the rows read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_choice, check_range
from survey_code.hashes import as_signs, check_hash_numbers, draw_multipliers, mix_ids
from survey_code.layouts.layout import (
    A,
    IdArray,
    Layout,
    RowArray,
    add_up,
    array_module,
)
from survey_code.layouts.parts import (
    Rows,
    as_rows,
    check_rows,
    part_work,
    read_all,
    read_part,
    rows_shape,
)

if TYPE_CHECKING:
    from torch import Tensor

    from survey_code.kernels.formats import Format

COMBINE = ("sum", "product", "concat", "path")
# Units of a path that a kernel's thread holds; wider ones are read array by array.
MOST_HIDDEN = 64


def mixed_index(
    seed: int | Sequence[int] | np.random.Generator, moduli: Sequence[int]
) -> np.ndarray:
    """Index table of independent hashes, one for each modulus; see `take_digits`."""
    multipliers = draw_multipliers(np.random.default_rng(seed), len(moduli))
    rows = [[*numbers, 1, size] for numbers, size in zip(multipliers.tolist(), moduli)]
    return np.array(rows, dtype=np.int64)


def plain_index(digits: Sequence[tuple[int, int]]) -> np.ndarray:
    """Index table of ids that are not mixed: a divisor and a modulus each."""
    return np.array([[0, 0, 0, *digit] for digit in digits], dtype=np.int64)


def take_digits(ids: A, index: np.ndarray | Tensor) -> list[A]:
    """Row numbers that an index table names, one array of ids' shape per row.

    Parameters
    ----------
    ids : array or tensor of int64
    index : array of int64, shape (k, 5)
        Columns: two multipliers and an addend (all 0: the id is not mixed), divisor,
        modulus.
    """
    digits = []
    for *numbers, divisor, modulus in index.tolist():
        mixed = mix_ids(ids, *numbers) if numbers[0] else ids
        digits.append((mixed // divisor) % modulus)
    return digits


def table_starts(index: np.ndarray | Tensor, shared: bool = False) -> list[int]:
    """Row of `values` at which each of the k tables starts; all at 0 where the k
    digits name rows of one shared table.
    """
    sizes = [row[-1] for row in index.tolist()]
    return [0] * len(sizes) if shared else [0, *itertools.accumulate(sizes[:-1])]


def count_rows(index: np.ndarray | Tensor, shared: bool = False) -> int:
    """Rows of the k tables together."""
    sizes = [row[-1] for row in index.tolist()]  # Python's integers cannot overflow
    return max(sizes) if shared else sum(sizes)


def choose_signs(ids: A, signs: np.ndarray) -> A:
    """+1 or -1 of each id from one more hash, as int64: its bit 31."""
    return as_signs(mix_ids(ids, *signs.tolist()))


def path_parameters(dim: int, hidden: int) -> int:
    """Numbers of one path: two weight matrices and two biases."""
    return hidden * (2 * dim + 1) + dim


def count_hidden(parameters: int, dim: int) -> int:
    """Hidden units of a path of so many parameters."""
    return (parameters - dim) // (2 * dim + 1)


def split_paths(paths: A, dim: int) -> tuple[A, A, A, A]:
    """The weights of paths (m, parameters), read row by row.

    Returns
    -------
    first, bias, second, shift : array
        Shapes (m, dim, hidden), (m, 1, hidden), (m, hidden, dim) and (m, 1, dim).
    """
    hidden = count_hidden(int(paths.shape[-1]), dim)
    cut = dim * hidden
    first = paths[:, :cut].reshape(-1, dim, hidden)
    bias = paths[:, None, cut : cut + hidden]
    second = paths[:, cut + hidden : cut + hidden + cut].reshape(-1, hidden, dim)
    return first, bias, second, paths[:, None, cut + hidden + cut :]


class HashedLayout(Layout):
    """k small tables, how an id picks a row of each, how the rows combine.

    Parameters
    ----------
    values : ndarray of float32 or float16, or layout, shape (all rows, width)
        The k tables below one another; table j has ``index[j, 4]`` rows.
        ``width`` is `embedding_dim`, or a k-th of it where rows are concatenated.
    index : ndarray of int64, shape (k, 5)
        See `take_digits`.
    num_embeddings, embedding_dim : int
    combine : {"sum", "product", "concat", "path"}
        ``"path"``: the first digit names a row of `values`, the second one of
        `paths`, a small network that the row runs through.
    signs : ndarray of int64, shape (3,), optional
        Numbers of a sign hash; each row read is multiplied by +1 or -1.
    open_ids : bool, default False
        Serve any id from 0 up, also those from `num_embeddings` on.
    shared : bool, default False
        All digits name rows of one table, so that `values` has as many rows as
        the largest modulus says.
    weights : ndarray of float32 or float16, or layout, optional
        Shape (entries, k) or (entries, k + 1): what the k rows of an id are
        multiplied by; one more column is added to every entry of the sum.
    weight_index : ndarray of int64, shape (1, 5), optional
        Which row of `weights` an id uses, as in `index`; by default the row of
        its own number.
    paths : ndarray of float32 or float16, or layout, optional
        Shape (networks, parameters).
        See `split_paths`.

    Raises
    ------
    ValueError
        If the shapes contradict each other.
    """

    name: ClassVar[str] = "hashed"
    array_names: ClassVar[tuple[str, ...]] = (
        "values",
        "index",
        "signs",
        "weights",
        "weight_index",
        "paths",
    )
    holders: ClassVar[tuple[str, ...]] = ("values", "weights", "paths")
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "combine_code",
        "open_ids",
        "shared",
    )

    values: Rows
    weights: Rows | None
    paths: Rows | None

    def __init__(
        self,
        values: npt.ArrayLike | Layout,
        index: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        combine: str = "sum",
        signs: np.ndarray | None = None,
        open_ids: bool = False,
        *,
        shared: bool = False,
        weights: npt.ArrayLike | Layout | None = None,
        weight_index: np.ndarray | None = None,
        paths: npt.ArrayLike | Layout | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        check_choice("combine", combine, COMBINE)
        self.values = as_rows(values)
        self.index = np.asarray(index)
        self.signs = None if signs is None else np.asarray(signs)
        self.weights = None if weights is None else as_rows(weights)
        self.weight_index = None if weight_index is None else np.asarray(weight_index)
        self.paths = None if paths is None else as_rows(paths)
        self.combine_code = COMBINE.index(combine)
        self.open_ids = as_flag("open_ids", open_ids)
        self.shared = as_flag("shared", shared)
        self.validate()

    @property
    def combine(self) -> str:
        """How the rows combine: "sum", "product", "concat" or "path"."""
        return COMBINE[self.combine_code]

    @property
    def parts(self) -> int:
        """Rows of `values` that one row of the table is put together from."""
        return len(self.index) if self.combine == "concat" else 1

    @property
    def shared_rows(self) -> int:
        """Rows of `values` that ids share."""
        tables = self.index[:1] if self.combine == "path" else self.index
        return count_rows(tables, bool(self.shared))

    def check_arrays(self) -> None:
        """Raise ValueError if tables, index and dimension contradict."""
        check_served(self.num_embeddings, self.open_ids)
        check_range("shared", self.shared, 0, 1)
        check_index("index", self.index)
        if not 0 <= self.combine_code < len(COMBINE):
            raise ValueError(f"combine_code must be 0 to 3, got {self.combine_code}")
        if self.embedding_dim % self.parts:
            raise ValueError(
                f"{self.parts} rows cannot be put together to {self.embedding_dim}"
            )
        self._validate_paths()
        width = self.embedding_dim // self.parts
        check_rows("values", self.values, [(self.shared_rows, width)])
        if self.signs is not None:
            check_hash_numbers("signs", self.signs)
        self._validate_weights()

    def _validate_weights(self) -> None:
        if self.weight_index is not None:
            check_index("weight_index", self.weight_index)
            if self.weights is None or len(self.weight_index) != 1:
                raise ValueError("weight_index is one row, and belongs to weights")
        if self.weights is None:
            return
        if self.combine != "sum":
            raise ValueError(f"weights go with sums, not with {self.combine!r}")
        if self.open_ids and self.weight_index is None:
            raise ValueError("weights of open ids need a weight_index")
        entries = self.num_embeddings
        if self.weight_index is not None:
            entries = int(self.weight_index[0, -1])
        tables = len(self.index)
        check_rows("weights", self.weights, [(entries, tables), (entries, tables + 1)])

    def _validate_paths(self) -> None:
        if (self.paths is None) != (self.combine != "path"):
            raise ValueError("paths belong to combine='path'")
        if self.paths is None:
            return
        dim = self.embedding_dim
        hidden = count_hidden(rows_shape(self.paths)[1], dim)
        if len(self.index) != 2 or hidden < 1:
            raise ValueError("paths need two digits, and hidden units")
        expected = (int(self.index[1, -1]), path_parameters(dim, hidden))
        check_rows("paths", self.paths, [expected])

    def read_rows(self, ids: IdArray) -> RowArray:
        """Digits and gathers, combined; then signs."""
        digits = take_digits(ids, self.index)
        rows = self.walk(digits) if self.combine == "path" else self.join(ids, digits)
        if self.signs is not None:
            rows = rows * choose_signs(ids, self.signs)[:, None].astype(np.float32)
        return rows

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """What sums, products and paths of the largest numbers come to."""
        most, tables = held["values"], len(self.index)
        if self.combine == "product":
            for _ in range(tables - 1):
                most = add_up(most * held["values"])
        if self.paths is not None:
            hidden = count_hidden(rows_shape(self.paths)[1], self.embedding_dim)
            weight = held["paths"]
            for inputs in (self.embedding_dim, hidden):
                most = add_up(inputs * most * weight * (1 + 1e-2), weight)
        if self.combine == "sum":
            weighted = [add_up(most * held.get("weights", 1.0))] * tables
            addend = [held["weights"]] if self.weights is not None else []
            most = add_up(*weighted, *addend)
        return float(most)

    def count_work(self) -> int:
        """The rows that digits name, and what they are multiplied by."""
        work = len(self.index) * part_work(self.values) + self.embedding_dim
        for part in (self.weights, self.paths):
            work += 0 if part is None else 2 * part_work(part)
        return work

    def describe(self) -> Format | None:
        """The rows that digits name, put together as they are read."""
        from survey_code.kernels.formats import (
            OPEN,
            HashedFormat,
            PathFormat,
            describe_rows,
        )

        shape = (OPEN if self.open_ids else self.num_embeddings, self.embedding_dim)
        values, index = describe_rows(self.values), self.index.tolist()
        if values is None:
            return None
        if self.paths is not None:
            paths = read_all(self.paths)
            hidden = count_hidden(paths.shape[1], self.embedding_dim)
            if self.signs is not None or hidden > MOST_HIDDEN:
                return None
            return PathFormat.of(
                shape, values, paths, index, hidden, decoded=paths is not self.paths
            )
        weights = None if self.weights is None else describe_rows(self.weights)
        if weights is None and self.weights is not None:
            return None
        return HashedFormat.of(
            shape,
            self.combine,
            values,
            index,
            table_starts(self.index, bool(self.shared)),
            signs=None if self.signs is None else self.signs.tolist(),
            weights=weights,
            weight_index=(
                None if self.weight_index is None else self.weight_index.tolist()[0]
            ),
        )

    def join(self, ids: IdArray, digits: list[np.ndarray]) -> RowArray:
        """The rows that digits name, as a sum, a product or side by side."""
        xp = array_module(ids)
        starts = table_starts(self.index, bool(self.shared))
        parts = [
            read_part(self.values, digit + start)
            for digit, start in zip(digits, starts)
        ]
        if self.combine == "concat":
            return xp.concatenate(parts, axis=1)
        weights = self.read_weights(ids)
        if weights is not None:
            parts = [part * weights[:, j, None] for j, part in enumerate(parts)]
            parts += [weights[:, j, None] for j in range(len(digits), weights.shape[1])]
        rows = parts[0]
        for part in parts[1:]:
            rows = rows + part if self.combine == "sum" else rows * part
        return rows

    def read_weights(self, ids: IdArray) -> RowArray | None:
        """What an id's rows are multiplied by, shape (m, k or k + 1)."""
        if self.weights is None:
            return None
        if self.weight_index is not None:
            ids = take_digits(ids, self.weight_index)[0]
        return read_part(self.weights, ids)

    def walk(self, digits: list[np.ndarray]) -> RowArray:
        """A row of `values`, through the network that the second digit names."""
        xp = array_module(digits[0])
        assert self.paths is not None
        rows = read_part(self.values, digits[0])[:, None, :]  # (m, 1, dim)
        weights = split_paths(read_part(self.paths, digits[1]), self.embedding_dim)
        first, bias, second, shift = weights
        hidden = xp.maximum(rows @ first + bias, 0)  # (m, 1, hidden)
        return (hidden @ second + shift)[:, 0]


def as_flag(name: str, value: object) -> int:
    """True or False, or 0 or 1, as a layout stores it; or one clear ValueError."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    return check_range(name, value, 0, 1)


def check_served(num_embeddings: int, open_ids: int) -> None:
    """Raise ValueError unless a layout that computes where to read can serve its ids.

    What it stores does not bound their number; int64 does.
    """
    check_range("num_embeddings", num_embeddings, 1, 2**63 - 1)
    check_range("open_ids", open_ids, 0, 1)


def check_index(name: str, index: np.ndarray | None) -> None:
    """Raise ValueError unless this is an index table as `take_digits` reads it."""
    if index is None or index.dtype != np.int64 or index.shape[1:] != (5,):
        raise ValueError(
            f"{name} must be int64 of shape (tables, 5): two multipliers, an addend, "
            "a divisor and a modulus"
        )
    if not len(index) or (index[:, 3:] < 1).any():
        raise ValueError(f"{name} needs a table, and divisors and moduli from 1 up")
