"""The networks around the table: each reads vectors and returns a score.

All weights are drawn by NumPy generators, because torch's own generators give
other numbers on other CPU types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from survey_code.checks import check_number, check_range, check_switch
from survey_code.embedding import CompressedEmbedding, Network
from survey_code.graph import normalize_graph, propagate_layers


class ClickNetwork(Network):
    """A network that turns the vectors of a row's ids into one logit.

    Parameters
    ----------
    table : CompressedEmbedding
        Holds the ids of all fields.
    """

    task: ClassVar[str] = "ctr"

    def __init__(self, table: CompressedEmbedding) -> None:
        super().__init__(table)
        # Weights per id outside the table (FM, DeepFM) count as storage too.
        self.first_order: nn.Embedding | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of rows of ids: (batch, fields) -> (batch,); ids are checked."""
        ids = self.table.check_ids(ids)
        return self.score(self.read(ids), ids)

    def read(self, ids: Tensor) -> Tensor:
        """Vectors of rows of ids, (batch, fields, dim), in the network's precision.

        Tables of integers or of half precision return float32 also while the
        network learns in float64.
        """
        vectors: Tensor = self.table.embed(ids)
        *_, last = self.parameters()  # the network's own: the table's come first
        return vectors.to(last.dtype)

    def score(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Logits from vectors (batch, fields, dim) already read."""
        raise NotImplementedError

    @property
    def per_id_bytes(self) -> int:
        """Bytes of weights per id that the network keeps outside the table."""
        return 0 if self.first_order is None else 4 * self.first_order.weight.numel()


class FactorizationMachine(ClickNetwork):
    """FM: a bias, a weight per id, and the inner products of all pairs of fields.

    Rendle, "Factorization Machines" (ICDM 2010).
    """

    def __init__(
        self, table: CompressedEmbedding, fields: int, rng: np.random.Generator
    ) -> None:
        super().__init__(table)
        self.bias = nn.Parameter(torch.zeros(1))
        self.first_order = nn.Embedding(table.num_embeddings, 1)
        nn.init.zeros_(self.first_order.weight)

    def score(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Linear part plus pairs: half of (square of sum - sum of squares)."""
        assert self.first_order is not None
        linear = self.first_order(ids).sum(dim=(1, 2))  # (batch,)
        pairs = (vectors.sum(1).square() - vectors.square().sum(1)).sum(1) / 2
        return self.bias + linear + pairs


class DeepFM(FactorizationMachine):
    """FM beside a multi-layer perceptron over the same vectors.

    Guo et al., "DeepFM" (IJCAI 2017).
    """

    def __init__(
        self,
        table: CompressedEmbedding,
        fields: int,
        rng: np.random.Generator,
        **layers: Any,
    ) -> None:
        super().__init__(table, fields, rng)
        self.deep = make_mlp(fields * table.embedding_dim, rng, output=1, **layers)

    def score(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """FM's logit plus the perceptron's."""
        return super().score(vectors, ids) + self.deep(vectors.flatten(1)).squeeze(1)


class DCNV2(ClickNetwork):
    """Cross layers beside a multi-layer perceptron; no weights per id outside.

    A cross layer is ``x0 * (W x + b) + x``.  Wang et al., "DCN V2" (WWW 2021),
    the parallel form with full matrices.
    """

    def __init__(
        self,
        table: CompressedEmbedding,
        fields: int,
        rng: np.random.Generator,
        cross_layers: int = 3,
        hidden: Sequence[int] = (400, 400, 400),
        **layers: Any,
    ) -> None:
        super().__init__(table)
        width = fields * table.embedding_dim
        self.cross = nn.ModuleList(
            make_linear(width, width, rng)
            for _ in range(check_range("cross_layers", cross_layers, 0))
        )
        self.deep = make_mlp(width, rng, hidden=hidden, **layers)
        self.top = make_linear(width + (hidden[-1] if hidden else width), 1, rng)

    def score(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Cross and deep part side by side, then one linear layer."""
        start = vectors.flatten(1)  # (batch, fields * dim)
        crossed = start
        for layer in self.cross:
            crossed = start * layer(crossed) + crossed
        return self.top(torch.cat([crossed, self.deep(start)], dim=1)).squeeze(1)


class DLRM(ClickNetwork):
    """Inner products of all pairs of fields, and the vectors, into a perceptron.

    Naumov et al., "Deep Learning Recommendation Model for Personalization and
    Recommendation Systems" (2019), for rows that have no dense features.
    """

    def __init__(
        self,
        table: CompressedEmbedding,
        fields: int,
        rng: np.random.Generator,
        **layers: Any,
    ) -> None:
        super().__init__(table)
        self.pairs: Tensor
        self.register_buffer("pairs", torch.triu_indices(fields, fields, 1))
        width = fields * table.embedding_dim + fields * (fields - 1) // 2
        self.deep = make_mlp(width, rng, output=1, **layers)

    def score(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Pairwise products beside the vectors, through the perceptron."""
        products = vectors @ vectors.transpose(1, 2)  # (batch, fields, fields)
        chosen = products[:, self.pairs[0], self.pairs[1]]  # (batch, pairs)
        inputs = torch.cat([vectors.flatten(1), chosen], dim=1)
        return self.deep(inputs).squeeze(1)


class RankingNetwork(Network):
    """A network that gives users and items vectors whose products rank.

    Parameters
    ----------
    table : CompressedEmbedding
        Users first, then items.
    num_users : int
    normalize : bool, default False
        Rank by cosine instead of inner product.
    """

    task: ClassVar[str] = "top-n"

    def __init__(
        self, table: CompressedEmbedding, num_users: int, normalize: bool = False
    ) -> None:
        super().__init__(table)
        self.num_users = check_range("num_users", num_users, 1, table.num_embeddings)
        self.normalize = check_switch("normalize", normalize)
        # Asked of the table that is trained; the frozen one in its place knows rows.
        self.turned = table.shares_rows
        self.ids: Tensor
        ids = torch.arange(table.num_embeddings)
        self.register_buffer("ids", ids, persistent=False)

    def represent(self, *batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Vectors to compare, and the sum of squares of the rows that were read.

        One tensor of vectors for each tensor of ids.
        """
        raise NotImplementedError

    def represent_all(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users and of all items."""
        raise NotImplementedError

    def _finish(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=1) if self.normalize else vectors


class MatrixFactorization(RankingNetwork):
    """The table's rows themselves, compared by inner product or cosine.

    A user and an item that read the same row would be the same vector, and no other
    item closer to the user.  Where a table shares rows, users' vectors are therefore
    turned by one column.  Elsewhere that would only give their columns other numbers.
    """

    def represent(self, *batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Rows of the batch's ids, users first."""
        rows = self.table.embed(torch.cat(batch))
        read = rows.square().sum()
        users, *others = self._finish(rows).split([len(ids) for ids in batch])
        return [self._turn(users), *others], read

    def represent_all(self) -> tuple[Tensor, Tensor]:
        """Rows of all ids."""
        rows = self._finish(self.table.embed(self.ids))
        return self._turn(rows[: self.num_users]), rows[self.num_users :]

    def _turn(self, users: Tensor) -> Tensor:
        return users.roll(1, dims=1) if self.turned else users


class LightGCN(RankingNetwork):
    """The mean of the rows and of what their neighbours' rows say, layer by layer.

    A layer replaces each vector by the sum of its neighbours' vectors, each
    divided by the root of both degrees.  He et al., "LightGCN" (SIGIR 2020).

    Parameters
    ----------
    table, num_users, normalize
        As for any ranking network.
    pairs : ndarray of int64, shape (pairs, 2)
        The training interactions, which are the graph's edges.
    layers : int, default 3
    """

    def __init__(
        self,
        table: CompressedEmbedding,
        num_users: int,
        pairs: np.ndarray,
        layers: int = 3,
        normalize: bool = False,
    ) -> None:
        super().__init__(table, num_users, normalize)
        self.layers = check_range("layers", layers, 0)
        self.graph: Tensor
        graph = normalize_graph(pairs, table.num_embeddings)
        self.register_buffer("graph", graph, persistent=False)

    def represent(self, *batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Propagated vectors of the batch's ids."""
        start = self.table.embed(self.ids)
        vectors = self._finish(self.propagate(start))
        read = start.index_select(0, torch.cat(batch)).square().sum()
        return [vectors.index_select(0, ids) for ids in batch], read

    def represent_all(self) -> tuple[Tensor, Tensor]:
        """Propagated vectors of all ids."""
        vectors = self._finish(self.propagate(self.table.embed(self.ids)))
        return vectors[: self.num_users], vectors[self.num_users :]

    def propagate(self, vectors: Tensor) -> Tensor:
        """Mean over the layers, shape (ids, dim) -> (ids, dim)."""
        layers = propagate_layers(self.graph, vectors, self.layers)
        total = layers[0]
        for layer in layers[1:]:
            total = total + layer
        return total / len(layers)


def make_linear(inputs: int, outputs: int, rng: np.random.Generator) -> nn.Linear:
    """A linear layer with Xavier-normal weights and zero bias."""
    layer = nn.Linear(inputs, outputs)
    std = math.sqrt(2 / (inputs + outputs))
    drawn = rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(std)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(drawn))
        layer.bias.zero_()
    return layer


def make_mlp(
    inputs: int,
    rng: np.random.Generator,
    hidden: Sequence[int] = (400, 400, 400),
    output: int | None = None,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear, batch norm, ReLU, dropout for each hidden width; then `output`.

    Raises
    ------
    ValueError
        If a width, the switch or the share of dropout is not what it must be.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ValueError(f"hidden must be a list of widths, got {hidden!r}")
    batch_norm = check_switch("batch_norm", batch_norm)
    dropout = check_number("dropout", dropout, low=0, below=1)
    layers: list[nn.Module] = []
    for width in hidden:
        width = check_range("hidden", width, 1)
        layers.append(make_linear(inputs, width, rng))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    if output is not None:
        layers.append(make_linear(inputs, output, rng))
    return nn.Sequential(*layers)


CLICK_NETWORKS: dict[str, Any] = {
    "fm": FactorizationMachine,
    "deepfm": DeepFM,
    "dcnv2": DCNV2,
    "dlrm": DLRM,
}


def build_click_network(
    name: str, table: CompressedEmbedding, fields: int, seed: int = 0, **layers: Any
) -> ClickNetwork:
    """A click network around a table.

    Parameters
    ----------
    name : {"fm", "deepfm", "dcnv2", "dlrm"}
    table : CompressedEmbedding
    fields : int
        Ids in a row.
    seed : int, default 0
        The same seed draws the same network whatever the table is.
    **layers
        ``hidden``, ``batch_norm``, ``dropout`` of the perceptron, and DCN-V2's
        ``cross_layers``.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in CLICK_NETWORKS:
        raise ValueError(
            f"unknown network {name!r} for clicks; networks: {sorted(CLICK_NETWORKS)}"
        )
    rng = np.random.default_rng([seed, 2])
    if name == "fm":
        return FactorizationMachine(table, fields, rng)
    return CLICK_NETWORKS[name](table, fields, rng, **layers)


RANKING_NETWORKS = ("mf", "lightgcn")


def build_ranking_network(
    name: str,
    table: CompressedEmbedding,
    num_users: int,
    pairs: np.ndarray,
    **layers: Any,
) -> RankingNetwork:
    """A ranking network around a table of users and items.

    Parameters
    ----------
    name : {"mf", "lightgcn"}
    table : CompressedEmbedding
    num_users : int
    pairs : ndarray of int64, shape (pairs, 2)
        Training interactions, which LightGCN's graph is made of.
    **layers
        ``normalize``, and LightGCN's ``layers``.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name == "mf":
        return MatrixFactorization(table, num_users, **layers)
    if name == "lightgcn":
        return LightGCN(table, num_users, pairs, **layers)
    raise ValueError(
        f"unknown network {name!r} for top-N; networks: {list(RANKING_NETWORKS)}"
    )
