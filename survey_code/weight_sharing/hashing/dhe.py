"""DHE: a network computes rows from many hashes of the id."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.budget import largest_fitting
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.hashes import draw_multipliers, hash_steps, mix_ids
from survey_code.layouts.generator import (
    ACTIVATIONS,
    BUCKETS,
    DISTRIBUTIONS,
    MOST_UNITS,
    GeneratorLayout,
    check_pairs,
    count_weights,
    layer_sizes,
    spread_hashes,
)
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import HASH_BYTES, HashingTable

# Ids on which the spread of fresh rows is measured.
SAMPLE = 1000
# Hashes for each hidden unit, and the most, by default.
CODES_PER_UNIT, MOST_CODES = 8, 1024
# Hashes that are computed at once.
PIECE = 2**17


class DHEOptions(Options):
    """Options of `DHE`."""

    codes: int = planned(
        "hashes of an id, the network's inputs: even where they are Gaussian",
        low=1, high=MOST_UNITS,
    )  # fmt: skip
    rate: float = option(
        0.3,
        "learning rate of the network over that of a table's rows",
        above=0, tune=(0.3, 0.1, 1.0),
    )  # fmt: skip
    layers: int = option(1, "hidden layers", low=1, high=MOST_UNITS, tune=(1, 2))
    distribution: str = option(
        "uniform", "of the hashes, as numbers", choices=DISTRIBUTIONS
    )
    activation: str = option("mish", "of the hidden units", choices=ACTIVATIONS)
    open_ids: bool = option(False, "serve ids beyond the table too")
    width: int = found("hidden units of each layer", low=1, high=MOST_UNITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.codes or 0, self.distribution)

    def shape_of(self, width: int) -> dict[str, int]:
        """Sizes of the network with so many hidden units, as its layout has them."""
        codes = self.codes or min(CODES_PER_UNIT * width, MOST_CODES)
        return {"codes": codes, "width": width, "layers": self.layers}


class DHE(HashingTable, Trained[DHEOptions]):
    """Many hashes of the id, and a network from them to a row (key ``dhe``).

    There is no table: every row is computed, also those of ids never seen.

    Notes
    -----
    Kang et al., "Learning to Embed Categorical Features without Embedding Tables
    for Recommendation" (KDD 2021).  Without batch normalisation, whose averages
    would depend on how often ids occur in a batch; with one hidden layer unless asked,
    where theirs has several, and with fewer hashes than their 1,024 where the budget
    is small: what a network of few units reads would else cost more than all the rest.
    """

    hash_names = ("multipliers",)

    def __init__(self, spec: TableSpec, options: DHEOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.shape = options.shape_of(options.width)
        self.distribution, self.activation = options.distribution, options.activation
        self.open_ids, self.rate = options.open_ids, options.rate
        self.multipliers = draw_multipliers(np.random.default_rng([seed, 1]), 1)[0]
        sizes = layer_sizes(**self.shape, dim=spec.embedding_dim)
        self.weights = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(sizes):
            std = math.sqrt(2 / inputs)
            matrix = draw_normal((inputs, outputs), std, [seed, 0, layer])
            self.weights.append(nn.Parameter(matrix))
            self.weights.append(nn.Parameter(torch.zeros(outputs)))
        self.scale_rows(spec.init_std)

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: DHEOptions) -> Found:
        """The widest network that fits; unless asked, eight times as many codes as
        hidden units, 1,024 at most.
        """

        def size(width: int) -> int:
            shape = options.shape_of(width)
            return 4 * count_weights(**shape, dim=spec.embedding_dim) + HASH_BYTES

        budget = spec.require(ratio, smallest=size(1))
        width = largest_fitting(1, MOST_UNITS, lambda w: size(w) <= budget)
        return {"width": width, "codes": options.shape_of(width)["codes"]}

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
        steps = torch.from_numpy(hash_steps(codes)).to(ids.device)
        numbers = self.multipliers.tolist()
        # In pieces that stay in the processor's cache; a GPU wants one.
        size = max(PIECE // codes, 1) if ids.device.type == "cpu" else max(len(ids), 1)
        hashes = torch.cat(
            [
                mix_ids(piece[:, None] + steps, *numbers) % BUCKETS
                for piece in ids.split(size)
            ]
        )
        spread: Tensor = spread_hashes(hashes.double(), self.distribution, torch)
        return spread.to(self.weights[0].dtype)

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
        return pick_rows(places, self.generate(distinct))

    def freeze(self) -> GeneratorLayout:
        """The network's weights and the hash."""
        return GeneratorLayout(
            np.concatenate([as_float32(weight).ravel() for weight in self.weights]),
            self.multipliers.copy(),
            self.num_embeddings,
            self.embedding_dim,
            **self.shape,
            distribution=self.distribution,
            activation=self.activation,
            open_ids=self.open_ids,
        )
