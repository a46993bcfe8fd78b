"""DHE: a network computes rows from many hashes of the id."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.embedding import CompressedEmbedding, check_range, draw_normal
from survey_code.layouts.generator import (
    BUCKETS,
    GeneratorLayout,
    check_network,
    code_steps,
    count_weights,
    layer_sizes,
)
from survey_code.layouts.hashed import draw_multipliers, mix_ids
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import PAIR_BYTES, as_array

# Ids on which the spread of fresh rows is measured.
SAMPLE = 1000
# Hashes for each hidden unit, and the most, by default.
CODES_PER_UNIT, MOST_CODES = 8, 1024
# Hashes that are computed at once.
PIECE = 2**17


class DHE(CompressedEmbedding):
    """Many hashes of the id, and a network from them to a row (key ``dhe``).

    There is no table: every row is computed, also those of ids never seen.

    Parameters
    ----------
    spec : TableSpec
    width : int
        Hidden units of each layer.
    codes : int
        Hashes of an id, the network's inputs.
    layers : int, default 1
        Hidden layers.
    distribution : {"uniform", "gaussian"}
        Of the hashes, as numbers.
    activation : {"mish", "relu"}
    rate : float, default 0.3
        Learning rate of the network over that of a table's rows.
    open_ids : bool, default False
        Serve ids beyond the table too.
    seed : int, default 0

    Raises
    ------
    ValueError
        If an option is not one of those.

    Notes
    -----
    Kang et al., "Learning to Embed Categorical Features without Embedding Tables
    for Recommendation" (KDD 2021).  Without batch normalisation, whose averages
    would depend on how often ids occur in a batch.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        width: int,
        codes: int,
        layers: int = 1,
        distribution: str = "uniform",
        activation: str = "mish",
        rate: float = 0.3,
        open_ids: bool = False,
        seed: int = 0,
    ) -> None:
        check_rate(rate)
        check_network(codes, width, layers, distribution, activation)
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.shape = {"codes": codes, "width": width, "layers": layers}
        self.distribution, self.activation = distribution, activation
        self.open_ids, self.rate = open_ids, float(rate)
        pairs = draw_multipliers(np.random.default_rng([seed, 1]), 1)
        self.multipliers = pairs[0]
        sizes = layer_sizes(**self.shape, dim=spec.embedding_dim)
        self.weights = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(sizes):
            std = math.sqrt(2 / inputs)
            matrix = draw_normal((inputs, outputs), std, [seed, 0, layer])
            self.weights.append(nn.Parameter(matrix))
            self.weights.append(nn.Parameter(torch.zeros(outputs)))
        self.scale_rows(spec.init_std)

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        codes: int | None = None,
        layers: int = 1,
        distribution: str = "uniform",
        activation: str = "mish",
        rate: float = 0.3,
        open_ids: bool = False,
    ) -> dict[str, Any]:
        """The widest network that fits; by default eight times as many codes as
        hidden units, 1,024 at most.
        """
        check_rate(rate)
        check_network(codes or 2, 1, layers, distribution, activation)
        if codes is not None:
            check_range("codes", codes, 1, 65536)

        def inputs(width: int) -> int:
            return codes or min(CODES_PER_UNIT * width, MOST_CODES)

        def size(width: int) -> int:
            count = count_weights(inputs(width), width, layers, spec.embedding_dim)
            return 4 * count + PAIR_BYTES

        budget = spec.require(ratio, smallest=size(1))
        width = budget // (4 * (codes or CODES_PER_UNIT))
        while width > 1 and size(width) > budget:
            width -= 1
        return {
            "width": width,
            "codes": inputs(width),
            "layers": layers,
            "distribution": distribution,
            "activation": activation,
            "rate": rate,
            "open_ids": open_ids,
        }

    @torch.no_grad()
    def scale_rows(self, std: float) -> None:
        """Stretch the last layer so that rows have the spread `std`."""
        last = self.weights[-2]
        ids = torch.arange(min(self.num_embeddings, SAMPLE))
        spread = self.generate(ids).std(unbiased=False)
        last *= std / spread.clamp(min=1e-12)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """All weights; each step moves every row, so that steps are smaller."""
        return [{"params": list(self.parameters()), "lr": learning_rate * self.rate}]

    def encode(self, ids: Tensor) -> Tensor:
        """The network's input: (m,) -> (m, codes)."""
        codes = self.shape["codes"]
        steps = torch.from_numpy(code_steps(codes)).to(ids.device)
        first, second = self.multipliers.tolist()
        # In pieces that stay in the processor's cache; a GPU wants one.
        size = max(PIECE // codes, 1) if ids.device.type == "cpu" else max(len(ids), 1)
        hashes = torch.cat(
            [
                mix_ids(piece[:, None] + steps, first, second) % BUCKETS
                for piece in ids.split(size)
            ]
        )
        kind = self.weights[0].dtype
        if self.distribution == "uniform":
            return (hashes.double() * (2 / (BUCKETS - 1)) - 1).to(kind)
        shares = (hashes.double() + 0.5) / BUCKETS
        radius = (-2 * shares[:, : codes // 2].log()).sqrt()
        angle = 2 * math.pi * shares[:, codes // 2 :]
        normal = [radius * angle.cos(), radius * angle.sin()]
        return torch.cat(normal, dim=1).to(kind)

    def generate(self, ids: Tensor) -> Tensor:
        """Rows of ids: (m,) -> (m, dim)."""
        signals = self.encode(ids)
        activate = functional.relu if self.activation == "relu" else functional.mish
        for layer in range(self.shape["layers"] + 1):
            matrix, bias = self.weights[2 * layer], self.weights[2 * layer + 1]
            signals = signals @ matrix + bias
            if layer < self.shape["layers"]:
                signals = activate(signals)
        return signals

    def embed(self, ids: Tensor) -> Tensor:
        """Each distinct id runs through the network once."""
        distinct, places = torch.unique(ids, return_inverse=True)
        return functional.embedding(places, self.generate(distinct))

    def freeze(self) -> GeneratorLayout:
        """The network's weights and the hash."""
        return GeneratorLayout(
            np.concatenate([as_array(weight).ravel() for weight in self.weights]),
            self.multipliers.copy(),
            self.num_embeddings,
            self.embedding_dim,
            **self.shape,
            distribution=self.distribution,
            activation=self.activation,
            open_ids=self.open_ids,
        )

    def get_extra_state(self) -> dict[str, Any]:
        """The hash, without which the network means nothing."""
        return {"multipliers": self.multipliers.tolist()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the hash of a state dict."""
        self.multipliers = np.array(state["multipliers"], dtype=np.int64)


def check_rate(rate: Any) -> None:
    """Raise ValueError unless this is a positive number."""
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise ValueError(f"rate must be a positive number, got {rate!r}")
