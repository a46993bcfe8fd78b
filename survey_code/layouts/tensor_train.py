"""The tensor-train layout: a row is a product of small matrices.

The row number is written with a few digits, ``i = (i_1, i_2, ..., i_k)``; digit j
picks one slice of core j, and the slices, multiplied from left to right, are the
row.  Two cores, the first with all the digits and the second with none, are a
low-rank table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.layouts.layout import (
    A,
    IdArray,
    Layout,
    RowArray,
    add_up,
    array_module,
)
from survey_code.layouts.parts import (
    NUMBERS,
    Rows,
    as_rows,
    part_work,
    read_all,
    read_part,
    rows_shape,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format


def take_mixed_digits(ids: A, sizes: Sequence[int]) -> list[A]:
    """Digits of ids in a mixed radix, the most significant first.

    Examples
    --------
    >>> [int(digit) for digit in take_mixed_digits(np.array(23), (2, 3, 4))]
    [1, 2, 3]
    """
    digits = []
    weight = math.prod(sizes)
    for size in sizes:
        weight //= size
        digits.append((ids // weight) % size)
    return digits


def multiply_slices(state: A, slices: A, step: int) -> A:
    """One more core, for each row of a batch: a semi-tensor product.

    Parameters
    ----------
    state : array or tensor, shape (m, columns so far, left rank)
    slices : array or tensor, shape (m or 1, left rank / step, columns / step,
        right rank)
    step : int
        1 is the matrix product.  With a step t, a slice B stands for the
        Kronecker product of the t x t identity and B, which is never formed:
        each of the t parts of the left rank meets the same B.

    Returns
    -------
    array or tensor, shape (m, columns so far * columns, right rank)
    """
    many, width, _ = state.shape
    _, inner, columns, right = slices.shape
    parts = state.reshape(many, width * step, inner)
    product = parts @ slices.reshape(len(slices), inner, columns * right)
    return product.reshape(many, width * step * columns, right)


# Numbers between cores that are held at once in a look-up: 16 MiB.
READ_NUMBERS = 1 << 22

# Entries that merged cores may have beyond twice the stored ones: 64 MiB.
MERGED = 1 << 24


def merge_cores(
    cores: Sequence[np.ndarray], steps: Sequence[int], most: int
) -> tuple[list[np.ndarray], list[int]]:
    """The same train in at most so many cores.

    Of all neighbours, the two are merged whose product is smallest, until few are
    left.  The product of two cores has a slice for each pair of their slices.

    Parameters
    ----------
    cores : sequence of arrays, shapes (rows, left / step, columns / step, right)
    steps : sequence of int
    most : int

    Returns
    -------
    cores, steps : list
    """
    cores, steps = list(cores), list(steps)
    while len(cores) > most:
        sizes = [
            (a.size // a.shape[3]) * (b.size // b.shape[1]) * step
            for a, b, step in zip(cores, cores[1:], steps[1:])
        ]
        at = sizes.index(min(sizes))
        first, second = cores[at : at + 2]
        cores[at : at + 2] = [multiply_cores(first, second, steps[at + 1])]
        del steps[at + 1]
    return cores, steps


def multiply_cores(first: np.ndarray, second: np.ndarray, step: int) -> np.ndarray:
    """Each slice of the first core times each of the second, (rows * rows, ...)."""
    xp = array_module(first)
    rows, left, columns, middle = first.shape
    ahead = xp.repeat(first.reshape(rows, left * columns, middle), len(second), axis=0)
    product = multiply_slices(ahead, xp.tile(second, (rows, 1, 1, 1)), step)
    wide = columns * step * second.shape[2]
    return product.reshape(rows * len(second), left, wide, second.shape[3])


class TensorTrainLayout(Layout):
    """Cores, and how their slices are multiplied.

    Parameters
    ----------
    cores : sequence of ndarray of float32 or float16, or of layouts
        Core j has the shape (rows_j, left_j / step_j, columns_j / step_j, right_j);
        as a layout, rows of so many numbers.
    shapes : ndarray of int64, shape (k, 5)
        Columns: rows, columns, left rank, right rank, step.
    num_embeddings, embedding_dim : int

    Raises
    ------
    ValueError
        If the shapes contradict each other.
    """

    name: ClassVar[str] = "tensor_train"
    array_names: ClassVar[tuple[str, ...]] = ("shapes",)
    listed: ClassVar[str | None] = "cores"

    cores: Sequence[Rows]

    def __init__(
        self,
        cores: Sequence[npt.ArrayLike | Layout],
        shapes: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.cores = [as_rows(core) for core in cores]
        self.shapes = np.asarray(shapes)
        self.validate()

    def check_arrays(self) -> None:
        """Raise ValueError if cores and dimension contradict."""
        shapes = self.shapes
        if shapes is None or shapes.dtype != np.int64 or shapes.shape[1:] != (5,):
            raise ValueError("shapes must be int64 of shape (cores, 5)")
        if not len(shapes) or (shapes < 1).any():
            raise ValueError("shapes needs a core, and sizes from 1 up")
        rows, columns, left, right, step = shapes.T.tolist()
        if (
            math.prod(rows) < self.num_embeddings
            or math.prod(columns) != self.embedding_dim
            or [1, *right] != [*left, 1]
            or any(a % t or c % t for a, c, t in zip(left, columns, step))
        ):
            raise ValueError(
                f"cores of shapes {shapes.tolist()} do not make a table of "
                f"{self.num_embeddings} x {self.embedding_dim}"
            )
        expected = core_shapes(shapes)
        if len(self.cores) != len(expected):
            raise ValueError(
                f"shapes are of {len(expected)} cores, not {len(self.cores)}"
            )
        for j, (core, shape) in enumerate(zip(self.cores, expected)):
            wanted = (shape[0], math.prod(shape[1:]))
            fits = (
                rows_shape(core) == wanted
                if isinstance(core, Layout)
                else core.shape == shape and core.dtype in NUMBERS
            )
            if not fits:
                raise ValueError(
                    f"core {j} must be float32 or float16 of shape {shape}, or a "
                    f"layout of shape {wanted}"
                )
        # Python's integers: reading them must never wait for a GPU.
        self._plan = (expected, rows, step)
        # Numbers of one row that are held at once: a slice, and the products so far.
        self._most = max(math.prod(shape[1:]) for shape in expected) + max(
            math.prod(columns[: place + 1]) * right[place]
            for place in range(len(columns))
        )

    def decoded_cores(self) -> list[RowArray]:
        """The cores as numbers, each of its shape."""
        return [
            read_all(core).reshape(shape)
            for core, shape in zip(self.cores, self._plan[0])
        ]

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """The products of the largest entries that slices have at each place."""
        most: Any = np.ones(1)
        for j, (core, shape) in enumerate(zip(self.cores, self._plan[0])):
            _, inner, columns, right = shape
            if isinstance(core, Layout):
                largest = np.full(shape[1:], held[str(j)])
            else:
                largest = np.maximum(core.max(axis=0), -core.min(axis=0))
            wide = largest.astype(np.float64).reshape(inner, columns * right)
            most = add_up((most.reshape(-1, inner) @ wide) * (1 + 1e-3))
            most = most.reshape(-1, right).max(axis=0)
        return float(most.max())

    def count_work(self) -> int:
        """The slices, and the products of each with all columns before it."""
        work, wide = self.embedding_dim, 1
        for core, shape, step in zip(self.cores, self._plan[0], self._plan[2]):
            slice_size = math.prod(shape[1:])
            work += part_work(core) + wide * step * slice_size
            wide *= step * shape[2]
        return work

    def describe(self) -> Format | None:
        """Three cores, decoded, into which longer trains are merged."""
        from survey_code.kernels.formats import TrainFormat

        given = self.decoded_cores()
        cores, steps = merge_cores(given, self._plan[2], 3)
        stored = sum(core.size for core in given)
        if sum(core.size for core in cores) > 2 * stored + MERGED:
            return None  # too much more than what is stored
        return TrainFormat.of((self.num_embeddings, self.embedding_dim), cores, steps)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Digits, slices, products; few enough rows at a time."""
        step = max(READ_NUMBERS // self._most, 1)
        if len(ids) <= step:
            return self._read_some(ids)
        out: RowArray = array_module(ids).empty(
            (len(ids), self.embedding_dim), dtype=np.float32
        )
        for start in range(0, len(ids), step):
            out[start : start + step] = self._read_some(ids[start : start + step])
        return out

    def _read_some(self, ids: IdArray) -> RowArray:
        xp = array_module(ids)
        shapes, rows, steps = self._plan
        state = xp.ones((len(ids), 1, 1), dtype=np.float32)
        for digits, core, shape, step in zip(
            take_mixed_digits(ids, rows), self.cores, shapes, steps
        ):
            # A core without a digit is one matrix for all.
            places = xp.zeros(1, dtype=np.int64) if shape[0] == 1 else digits
            slices = read_part(core, places).reshape(-1, *shape[1:])
            state = multiply_slices(state, slices, step)
        return state.reshape(len(ids), self.embedding_dim)


def core_shapes(shapes: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Shape of each core's array, from rows, columns, ranks and step."""
    return [
        (rows, left // step, columns // step, right)
        for rows, columns, left, right, step in np.asarray(shapes).tolist()
    ]
