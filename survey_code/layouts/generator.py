"""The generator layout: no rows at all; a network computes them from hashes.

An id is hashed many times.  The hashes, as numbers from -1 to 1 or as normal
numbers, are the input of a small network whose output is the row.  What is known of
each id may stand beside its hashes; it is stored, and counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from survey_code.checks import check_choice, check_range
from survey_code.hashes import check_hash_numbers, mix_many
from survey_code.layouts.hashed import as_flag, check_served
from survey_code.layouts.layout import (
    A,
    IdArray,
    Layout,
    RowArray,
    add_up,
    array_module,
    is_cupys,
)
from survey_code.layouts.parts import (
    Rows,
    as_rows,
    as_vector,
    check_numbers,
    check_rows,
    part_work,
    read_part,
    read_vector,
    rows_shape,
    vector_room,
)

if TYPE_CHECKING:
    from survey_code.kernels.formats import Format

# Values that one hash takes, as in the paper.
BUCKETS = 1_000_000
# Hashes, hidden units and layers, at most.
MOST_UNITS = 65536

DISTRIBUTIONS = ("uniform", "gaussian")
ACTIVATIONS = ("relu", "mish")


def hash_many(ids: A, multipliers: np.ndarray, codes: int) -> list[A]:
    """Hashes of ids, each from 0 to BUCKETS - 1: `codes` arrays of ids' shape."""
    return [mixed % BUCKETS for mixed in mix_many(ids, multipliers, codes)]


def spread_hashes(hashes: A, distribution: str, xp: ModuleType) -> A:
    """Hashes as numbers from -1 to 1, or as normal ones: (m, codes) of float64.

    Parameters
    ----------
    hashes : array or tensor of float64, shape (m, codes)
    distribution : {"uniform", "gaussian"}
    xp : module
        NumPy, CuPy or torch.
    """
    if distribution == "uniform":
        return hashes * (2 / (BUCKETS - 1)) - 1
    half = hashes.shape[1] // 2
    # Box and Muller: two uniform numbers make two normal ones.
    shares = (hashes + 0.5) / BUCKETS
    radius = xp.sqrt(-2 * xp.log(shares[:, :half]))
    angle = 2 * math.pi * shares[:, half:]
    return xp.concatenate([radius * xp.cos(angle), radius * xp.sin(angle)], axis=1)


def layer_sizes(
    codes: int, width: int, layers: int, dim: int, told: int = 0
) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer: `layers` hidden ones, and the last.

    The first reads `codes` hashes, and `told` entries of content behind them.
    """
    sizes = [codes + told] + [width] * layers + [dim]
    return list(pairwise(sizes))


def count_weights(codes: int, width: int, layers: int, dim: int, told: int = 0) -> int:
    """Weights and biases of the network."""
    sizes = layer_sizes(codes, width, layers, dim, told)
    return sum(inputs * outputs + outputs for inputs, outputs in sizes)


class GeneratorLayout(Layout):
    """Hash parameters, and the weights of a network from hashes to rows.

    Parameters
    ----------
    values : ndarray of float32, shape (weights,), or layout
        Layer after layer: the matrix (inputs, outputs), row by row, then the bias;
        a layout holds them row after row.
    multipliers : ndarray of int64, shape (3,)
        The numbers of all hashes; hash j mixes the id plus j times a constant.
    num_embeddings, embedding_dim : int
    codes : int
        Hashes of an id; even where they are Gaussian.
    width, layers : int
        Hidden units of a layer, and hidden layers.
    distribution : {"uniform", "gaussian"}
        What hashes are turned into.
    activation : {"relu", "mish"}
    open_ids : bool, default False
        Serve any id from 0 up.
    content : ndarray of float32 or float16, or layout, optional
        What is known of each id, (num_embeddings, told): the network reads it behind
        the hashes.  Ids beyond the table have none, so that `open_ids` must be False.

    Raises
    ------
    ValueError
        If the arrays do not have these sizes.
    """

    name: ClassVar[str] = "generator"
    array_names: ClassVar[tuple[str, ...]] = ("values", "multipliers", "content")
    holders: ClassVar[tuple[str, ...]] = ("values",)
    shape_names: ClassVar[tuple[str, ...]] = (
        "num_embeddings",
        "embedding_dim",
        "codes",
        "width",
        "layers",
        "distribution_code",
        "activation_code",
        "open_ids",
    )

    values: Rows
    multipliers: np.ndarray
    content: Rows | None

    def __init__(
        self,
        values: npt.ArrayLike | Layout,
        multipliers: np.ndarray,
        num_embeddings: int,
        embedding_dim: int,
        *,
        codes: int,
        width: int,
        layers: int,
        distribution: str = "uniform",
        activation: str = "relu",
        open_ids: bool = False,
        content: npt.ArrayLike | Layout | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        check_network(codes, width, layers, distribution, activation)
        self.values = as_vector(values)
        self.multipliers = np.asarray(multipliers)
        self.codes, self.width, self.layers = int(codes), int(width), int(layers)
        self.distribution_code = DISTRIBUTIONS.index(distribution)
        self.activation_code = ACTIVATIONS.index(activation)
        self.open_ids = as_flag("open_ids", open_ids)
        self.content = None if content is None else as_rows(content)
        self.validate()

    @property
    def distribution(self) -> str:
        """What hashes are turned into: "uniform" or "gaussian"."""
        return DISTRIBUTIONS[self.distribution_code]

    @property
    def activation(self) -> str:
        """What hidden units apply: "relu" or "mish"."""
        return ACTIVATIONS[self.activation_code]

    @property
    def told(self) -> int:
        """Entries of content that the network reads beside the hashes."""
        return 0 if self.content is None else rows_shape(self.content)[1]

    def check_arrays(self) -> None:
        """Raise ValueError if the arrays do not have the network's sizes."""
        for code, choices in (
            (self.distribution_code, DISTRIBUTIONS),
            (self.activation_code, ACTIVATIONS),
        ):
            if not 0 <= code < len(choices):
                raise ValueError(f"no choice {code} in {choices}")
        shape = (self.codes, self.width, self.layers)
        check_network(*shape, self.distribution, self.activation)
        if self.content is not None:
            check_rows("content", self.content, [(self.num_embeddings, self.told)])
            check_closed(bool(self.open_ids), self.told)
        weights = count_weights(*shape, self.embedding_dim, self.told)
        check_numbers("values", self.values, weights, [np.float32])
        check_served(self.num_embeddings, self.open_ids)
        check_hash_numbers("multipliers", self.multipliers)

    def read_rows(self, ids: IdArray) -> RowArray:
        """Hash, then run the network; each distinct id once."""
        xp = array_module(ids)
        distinct, places = xp.unique(ids, return_inverse=True)
        signals = self.encode(distinct)
        if self.content is not None:
            told = read_part(self.content, distinct)
            signals = xp.concatenate([signals, told], axis=1)
        for layer, (matrix, bias) in enumerate(self.split_layers()):
            signals = signals @ matrix + bias
            if layer < self.layers:
                signals = self.activate(signals)
        return signals[places.ravel()]

    def split_layers(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The layers: matrix (inputs, outputs), and bias (outputs,).

        Views; on a GPU copies, since products want their matrices aligned.
        """
        start = 0
        shape = (self.codes, self.width, self.layers, self.embedding_dim)
        values = read_vector(self.values, vector_room(self.values))
        for inputs, outputs in layer_sizes(*shape, self.told):
            end = start + inputs * outputs
            matrix = values[start:end].reshape(inputs, outputs)
            bias = values[end : end + outputs]
            start = end + outputs
            yield (matrix.copy(), bias.copy()) if is_cupys(matrix) else (matrix, bias)

    def bound_rows(self, held: Mapping[str, float]) -> float:
        """What each layer makes of the largest input; no activation enlarges it."""
        hashes = np.full(self.codes, math.sqrt(2 * math.log(2 * BUCKETS)))
        told = np.full(self.told, held.get("content", 0.0))
        most: Any = np.concatenate([hashes, told])
        for matrix, bias in self.split_layers():
            weights = np.abs(matrix).astype(np.float64)
            most = add_up(add_up(most @ weights * (1 + 1e-3)), np.abs(bias))
        return float(most.max())

    def count_work(self) -> int:
        """The network's weights, the hashes, and the content."""
        told = 0 if self.content is None else part_work(self.content)
        return vector_room(self.values) + self.codes + told

    def describe(self) -> Format | None:
        """Hashes and activations by kernels, products by cuBLAS; with content the code
        for arrays does all.
        """
        from survey_code.kernels.formats import OPEN, GeneratorFormat

        if self.content is not None:
            return None
        return GeneratorFormat(
            OPEN if self.open_ids else self.num_embeddings,
            self.embedding_dim,
            self.codes,
            self.multipliers.tolist(),
            self.distribution == "gaussian",
            self.activation,
            list(self.split_layers()),
        )

    def encode(self, ids: IdArray) -> RowArray:
        """The hashes that the network reads: float32, shape (m, codes)."""
        xp = array_module(ids)
        hashes = xp.stack(hash_many(ids, self.multipliers, self.codes), axis=1)
        numbers = spread_hashes(hashes.astype(np.float64), self.distribution, xp)
        return numbers.astype(np.float32)

    def activate(self, signals: RowArray) -> RowArray:
        """ReLU, or Mish: x tanh(log(1 + e^x))."""
        xp = array_module(signals)
        if self.activation == "relu":
            return xp.maximum(signals, 0)
        return signals * xp.tanh(xp.logaddexp(np.float32(0), signals))


def check_network(
    codes: int, width: int, layers: int, distribution: str, activation: str
) -> None:
    """Raise ValueError unless a network can be built so."""
    for name, size in (("codes", codes), ("width", width), ("layers", layers)):
        check_range(name, size, 1, MOST_UNITS)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_choice("activation", activation, ACTIVATIONS)
    check_pairs(codes, distribution)


def check_pairs(codes: int, distribution: str) -> None:
    """Raise ValueError for a number of hashes that cannot be made normal in pairs."""
    if distribution == "gaussian" and codes % 2:
        raise ValueError(f"Gaussian codes come in pairs, got codes={codes}")


def check_closed(open_ids: bool, told: int) -> None:
    """Raise ValueError if ids beyond the table are to be served, and have content."""
    if open_ids and told:
        raise ValueError(
            "content is known of the table's own ids only: with it open_ids must be "
            "False, got True"
        )
