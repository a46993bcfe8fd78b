"""The generator layout: no rows at all; a network computes them from hashes.

An id is hashed many times.  The hashes, as numbers from -1 to 1 or as normal
numbers, are the input of a small network whose output is the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from survey_code.layouts.flat import GOLDEN, shift_ids
from survey_code.layouts.hashed import mix_ids
from survey_code.layouts.layout import Array, Layout, array_module

# Values that one hash takes, as in the paper.
BUCKETS = 1_000_000

DISTRIBUTIONS = ("uniform", "gaussian")
ACTIVATIONS = ("relu", "mish")


def hash_many(ids: Array, multipliers: Array, codes: int) -> list[Array]:
    """Hashes of ids, each from 0 to BUCKETS - 1: `codes` arrays of ids' shape."""
    first, second = multipliers.tolist()
    return [
        mix_ids(shift_ids(ids, code), first, second) % BUCKETS for code in range(codes)
    ]


def code_steps(codes: int) -> np.ndarray:
    """What `hash_many` adds to an id for each hash: int64 of shape (codes,)."""
    steps = np.arange(codes, dtype=np.uint64) * np.uint64(GOLDEN % 2**64)
    return steps.view(np.int64)


def layer_sizes(codes: int, width: int, layers: int, dim: int) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer: `layers` hidden ones, and the last."""
    sizes = [codes] + [width] * layers + [dim]
    return list(pairwise(sizes))


def count_weights(codes: int, width: int, layers: int, dim: int) -> int:
    """Weights and biases of the network."""
    sizes = layer_sizes(codes, width, layers, dim)
    return sum(inputs * outputs + outputs for inputs, outputs in sizes)


class GeneratorLayout(Layout):
    """Hash parameters, and the weights of a network from hashes to rows.

    Parameters
    ----------
    values : ndarray of float32, shape (weights,)
        Layer after layer: the matrix (inputs, outputs), row by row, then the bias.
    multipliers : ndarray of int64, shape (2,)
        Of all hashes; hash j mixes the id plus j times a constant.
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

    Raises
    ------
    ValueError
        If the arrays do not have these sizes.
    """

    name: ClassVar[str] = "generator"
    array_names: ClassVar[tuple[str, ...]] = ("values", "multipliers")
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

    def __init__(
        self,
        values: np.ndarray,
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
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        check_network(codes, width, layers, distribution, activation)
        self.values = np.asarray(values)
        self.multipliers = np.asarray(multipliers)
        self.codes, self.width, self.layers = int(codes), int(width), int(layers)
        self.distribution_code = DISTRIBUTIONS.index(distribution)
        self.activation_code = ACTIVATIONS.index(activation)
        self.open_ids = int(open_ids)
        self.validate()

    @property
    def distribution(self) -> str:
        """What hashes are turned into: "uniform" or "gaussian"."""
        return DISTRIBUTIONS[self.distribution_code]

    @property
    def activation(self) -> str:
        """What hidden units apply: "relu" or "mish"."""
        return ACTIVATIONS[self.activation_code]

    def validate(self) -> None:
        """Raise ValueError if the arrays do not have the network's sizes."""
        for code, choices in (
            (self.distribution_code, DISTRIBUTIONS),
            (self.activation_code, ACTIVATIONS),
        ):
            if not 0 <= code < len(choices):
                raise ValueError(f"no choice {code} in {choices}")
        shape = (self.codes, self.width, self.layers)
        check_network(*shape, self.distribution, self.activation)
        expected = (count_weights(*shape, self.embedding_dim),)
        values, pair = self.values, self.multipliers
        if values is None or values.dtype != np.float32 or values.shape != expected:
            raise ValueError(f"values must be float32 of shape {expected}")
        if pair is None or pair.dtype != np.int64 or pair.shape != (2,):
            raise ValueError("multipliers must be int64 of shape (2,)")

    def read_rows(self, ids: Array) -> Array:
        """Hash, then run the network; each distinct id once."""
        xp = array_module(ids)
        distinct, places = xp.unique(ids, return_inverse=True)
        signals = self.encode(distinct)
        for layer, (matrix, bias) in enumerate(self.split_layers()):
            signals = signals @ matrix + bias
            if layer < self.layers:
                signals = self.activate(signals)
        return signals[places.ravel()]

    def split_layers(self) -> Iterator[tuple[Array, Array]]:
        """Views of the layers: matrix (inputs, outputs), and bias (outputs,)."""
        start = 0
        sizes = layer_sizes(self.codes, self.width, self.layers, self.embedding_dim)
        for inputs, outputs in sizes:
            end = start + inputs * outputs
            matrix = self.values[start:end].reshape(inputs, outputs)
            yield matrix, self.values[end : end + outputs]
            start = end + outputs

    def fuse(self) -> Any:
        """Hashes and activations by kernels, products by cuBLAS."""
        from survey_code.gpu.composed import OPEN
        from survey_code.gpu.multiplied import GeneratedRows

        first, second = self.multipliers.tolist()
        return GeneratedRows(
            OPEN if self.open_ids else self.num_embeddings,
            self.embedding_dim,
            self.codes,
            (first, second),
            self.distribution == "gaussian",
            self.activation,
            list(self.split_layers()),
        )

    def encode(self, ids: Array) -> Array:
        """The network's input: float32, shape (m, codes)."""
        xp = array_module(ids)
        hashes = xp.stack(hash_many(ids, self.multipliers, self.codes), axis=1)
        if self.distribution == "uniform":
            return (hashes * (2 / (BUCKETS - 1)) - 1).astype(np.float32)
        half = self.codes // 2
        # Box and Muller: two uniform numbers make two normal ones.
        shares = (hashes + 0.5) / BUCKETS
        radius = xp.sqrt(-2 * xp.log(shares[:, :half]))
        angle = 2 * math.pi * shares[:, half:]
        normal = [radius * xp.cos(angle), radius * xp.sin(angle)]
        return xp.concatenate(normal, axis=1).astype(np.float32)

    def activate(self, signals: Array) -> Array:
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
        if not isinstance(size, int | np.integer) or not 1 <= size <= 65536:
            raise ValueError(f"{name} must be an integer from 1 to 65536, got {size!r}")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {DISTRIBUTIONS}, got {distribution!r}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if distribution == "gaussian" and codes % 2:
        raise ValueError(f"Gaussian codes come in pairs, got codes={codes}")
