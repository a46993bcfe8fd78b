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
    check_closed,
    check_pairs,
    count_weights,
    layer_sizes,
    spread_hashes,
)
from survey_code.layouts.rowwise import BITS, RowwiseLayout, centre_of
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import HASH_BYTES, HashingTable
from survey_code.weight_sharing.hashing.content import (
    content_bytes,
    content_step,
    require_content,
    round_content,
)

# Ids on which the spread of fresh rows is measured.
SAMPLE = 1000
# Hashes for each hidden unit, and the most, by default.
CODES_PER_UNIT, MOST_CODES = 8, 1024
# Hashes that are computed at once.
PIECE = 2**17

# Of a hash, as a number.
VARIANCES = {"uniform": 1 / 3, "gaussian": 1.0}

NORMALISATIONS = ("none", "batch")
# What a batch adds to the running averages, and what keeps a spread from 0; torch's.
MOMENTUM, EPSILON = 0.1, 1e-5


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
    normalisation: str = option(
        "none",
        "of hidden units before their activation: none, or by averages over the "
        "distinct ids of a batch, which the weights take in at the end",
        choices=NORMALISATIONS,
    )
    content: int = option(
        0,
        "bits of each entry of the ids' content, which is stored, and read beside the "
        "hashes; 0: hashes alone",
        choices=(0, *BITS),
    )
    width: int = found("hidden units of each layer", low=1, high=MOST_UNITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.codes or 0, self.distribution)
        check_closed(self.open_ids, self.content)

    def shape_of(self, width: int) -> dict[str, int]:
        """Sizes of the network with so many hidden units, as its layout has them."""
        codes = self.codes or min(CODES_PER_UNIT * width, MOST_CODES)
        return {"codes": codes, "width": width, "layers": self.layers}

    def told(self, spec: TableSpec) -> int:
        """Entries of content that the network reads."""
        return require_content(spec).shape[1] if self.content else 0


class BatchAverages(nn.Module):
    """Batch normalisation of hidden units, whose bias is their layer's own.

    Each unit less its average, over its spread, times a scale that is learnt.  While
    it is trained these are of the distinct ids of a batch, so that an id counts once
    however often the batch reads it; otherwise they are running averages over batches,
    the first of which sets them.  They are over batches all the same: an id that many
    batches read weighs more than one that few do.

    Parameters
    ----------
    units : int
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(units))
        self.register_buffer("mean", torch.zeros(units))
        self.register_buffer("variance", torch.ones(units))
        self.momentum = 1.0

    def forward(self, signals: Tensor) -> Tensor:
        """Units of distinct ids: (m, units), the same shape."""
        mean, variance = self.mean.to(signals), self.variance.to(signals)
        if self.training and len(signals) > 1:  # a single id has no spread
            mean, variance = signals.mean(0), signals.var(0, unbiased=False)
            self.remember(mean.detach(), signals.detach().var(0))
        return (signals - mean) * (self.scale / torch.sqrt(variance + EPSILON))

    def remember(self, mean: Tensor, variance: Tensor) -> None:
        """Let a batch move the running averages."""
        for kept, new in ((self.mean, mean), (self.variance, variance)):
            kept.lerp_(new.to(kept), self.momentum)
        self.momentum = MOMENTUM

    def fold(self, matrix: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a layer that does the same without averages."""
        variance, mean = self.variance.to(matrix), self.mean.to(matrix)
        factor = self.scale / torch.sqrt(variance + EPSILON)
        return matrix * factor, bias - mean * factor


class DHE(HashingTable, Trained[DHEOptions]):
    """Many hashes of the id, and a network from them to a row (key ``dhe``).

    There is no table: every row is computed, also those of ids never seen.

    Notes
    -----
    Kang et al., "Learning to Embed Categorical Features without Embedding Tables
    for Recommendation" (KDD 2021).  Unless asked otherwise without their batch
    normalisation, and with one hidden layer where theirs has several; with fewer hashes
    than their 1,024 where the budget is small: what a network of few units reads would
    else cost more than all the rest.  Content, their side features, is rounded and
    stored beside the network, by the numbers of the table's ids.
    """

    hash_names = ("multipliers",)
    # Averages and scales are no weights, which L2 would count.
    gauges = ("averages",)
    content: Tensor | None

    def __init__(self, spec: TableSpec, options: DHEOptions, seed: int = 0) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.shape = options.shape_of(options.width)
        self.distribution, self.activation = options.distribution, options.activation
        self.open_ids, self.rate = options.open_ids, options.rate
        self.multipliers = draw_multipliers(np.random.default_rng([seed, 1]), 1)[0]
        told, self.bits = options.told(spec), options.content
        codes = round_content(require_content(spec), self.bits) if told else None
        # At the start content is to weigh as much as all hashes together.
        heard = self.shape["codes"] * VARIANCES[self.distribution] / max(told, 1)
        self.step = content_step(self.bits or 2) * np.float32(math.sqrt(heard))
        self.register_buffer("content", None if codes is None else torch.tensor(codes))
        hidden = self.shape["layers"] if options.normalisation == "batch" else 0
        units = [self.shape["width"]] * hidden
        self.averages = nn.ModuleList(BatchAverages(size) for size in units)
        sizes = layer_sizes(**self.shape, dim=spec.embedding_dim, told=told)
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
        fixed = HASH_BYTES
        if told := options.told(spec):
            fixed += content_bytes(spec, options.content)

        def size(width: int) -> int:
            shape = options.shape_of(width)
            return 4 * count_weights(**shape, dim=spec.embedding_dim, told=told) + fixed

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
        """The hashes that the network reads: (m,) -> (m, codes)."""
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
        if self.content is not None:
            signals = torch.cat([signals, self.read_content(ids)], dim=1)
        activate = functional.relu if self.activation == "relu" else functional.mish
        for layer in range(self.shape["layers"] + 1):
            matrix, bias = self.weights[2 * layer], self.weights[2 * layer + 1]
            signals = signals @ matrix
            if layer < len(self.averages):
                signals = self.averages[layer](signals)
            signals = signals + bias
            if layer < self.shape["layers"]:
                signals = activate(signals)
        return signals

    def read_content(self, ids: Tensor) -> Tensor:
        """What is known of ids, as the layout reads it: (m,) -> (m, told)."""
        assert self.content is not None
        centred = self.content[ids].float() - centre_of(self.bits)
        return (centred * float(self.step)).to(self.weights[0].dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Each distinct id runs through the network once."""
        distinct, places = torch.unique(ids, return_inverse=True)
        return pick_rows(places, self.generate(distinct))

    @torch.no_grad()
    def folded(self) -> list[Tensor]:
        """Matrix and bias of each layer, without averages."""
        weights = list(self.weights)
        for layer, averages in enumerate(self.averages):
            assert isinstance(averages, BatchAverages)
            pair = slice(2 * layer, 2 * layer + 2)
            weights[pair] = averages.fold(*weights[pair])
        return weights

    def stored_content(self) -> RowwiseLayout | None:
        """The content of all ids, as it is stored."""
        if self.content is None:
            return None
        codes, step = self.content.cpu().numpy(), self.step.reshape(1)
        return RowwiseLayout.from_groups(codes, step, None, self.bits)

    def freeze(self) -> GeneratorLayout:
        """The network's weights and the hash; the content that it reads."""
        return GeneratorLayout(
            np.concatenate([as_float32(weight).ravel() for weight in self.folded()]),
            self.multipliers.copy(),
            self.num_embeddings,
            self.embedding_dim,
            **self.shape,
            distribution=self.distribution,
            activation=self.activation,
            open_ids=self.open_ids,
            content=self.stored_content(),
        )
