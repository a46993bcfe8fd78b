"""What the binary methods share: sizes, signs, and a table on a graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.embedding import CompressedEmbedding, Fitted, draw_normal, pick_rows
from survey_code.graph import graph_arrays, make_csr, propagate_layers
from survey_code.layouts import BinaryLayout
from survey_code.method import Task
from survey_code.spec import TableSpec


def sign_bytes(spec: TableSpec, bits: int | None = None) -> int:
    """Bytes of all rows' codes, each padded to whole bytes."""
    return spec.num_embeddings * (-(-(bits or spec.embedding_dim) // 8))


def as_half(scales: np.ndarray) -> np.ndarray:
    """Scales as float16, or a ValueError where they do not fit."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"float16 holds scales up to 65504, got {scales.max():.6g}")
    return half


def take_signs(values: Tensor) -> Tensor:
    """+1 where a value is not negative, else -1."""
    return torch.where(values >= 0, 1.0, -1.0)


class PropagatedEmbedding(CompressedEmbedding):
    """A trained table whose rows may spread over the graph before they are read.

    Parameters
    ----------
    spec : TableSpec
        Its interactions are the graph.
    layers : int, optional
        Steps over the graph; 0 reads the rows themselves.  By default 1 where
        there are interactions, else 0.
    seed : int

    Raises
    ------
    ValueError
        If there are layers but no interactions.
    """

    def __init__(self, spec: TableSpec, layers: int | None, seed: int) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        self.layers = choose_layers(spec, layers, default=1)
        self.starts: Tensor
        self.columns: Tensor
        self.edges: Tensor
        if self.layers:
            assert spec.interactions is not None
            parts = graph_arrays(spec.interactions, spec.num_embeddings)
            for name, part in zip(("starts", "columns", "edges"), parts):
                self.register_buffer(name, part, persistent=False)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.weight = nn.Parameter(draw_normal(shape, spec.init_std, [seed, 0]))

    def spread(self) -> list[Tensor]:
        """The table, and what it becomes layer by layer."""
        if not self.layers:
            return [self.weight]
        edges = self.edges.to(self.weight.dtype)
        graph = make_csr(self.starts, self.columns, edges, check=False)
        return propagate_layers(graph, self.weight, self.layers)

    def gather(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table; sparse gradients only where it is the weight itself."""
        sparse = self.regime.sparse and table is self.weight
        return pick_rows(ids, table, sparse=sparse)

    def fit(self, task: Task) -> Fitted:
        """Train in the usual loop."""
        self.check_network(task)
        return task.train(self)

    def check_network(self, task: Task) -> None:
        """Codes are taken after propagation: the network must not propagate again."""
        if self.layers and task.model != "mf":
            raise ValueError(
                f"the codes of a table with layers={self.layers} are taken after "
                f"propagation and compared as they are: model must be 'mf', got "
                f"{task.model!r}"
            )


def choose_layers(spec: TableSpec, layers: int | None, default: int) -> int:
    """Layers asked for, or the default where there is a graph."""
    if layers is None:
        return 0 if spec.interactions is None else default
    if layers and spec.interactions is None:
        raise ValueError(
            f"layers={layers} need the interactions of a top-N task, which the spec "
            "does not have"
        )
    return layers


class SignedEmbedding(PropagatedEmbedding):
    """Real weights in training, their signs and one learnt scale in use.

    A subclass says in `relax` what stands for the sign while training.
    """

    gauges = ("scale",)

    def __init__(self, spec: TableSpec, layers: int | None, seed: int) -> None:
        super().__init__(spec, layers, seed)
        # The unit of weights where tanh bends them: they start well inside its
        # straight part, and reach the ends by training.
        self.unit = 10 * spec.init_std
        self.scale = nn.Parameter(torch.full((1, 1), spec.init_std))

    def latent(self) -> Tensor:
        """The real table whose signs are the codes: the mean over the layers."""
        tables = self.spread()
        return tables[0] if len(tables) == 1 else torch.stack(tables).mean(0)

    def relax(self, latent: Tensor) -> Tensor:
        """What stands for the sign in training, between -1 and 1."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """The scale times signs, or times what stands for them."""
        rows = self.gather(self.latent(), ids)
        return self.scale * (self.relax(rows) if self.training else take_signs(rows))

    @torch.no_grad()
    def freeze(self) -> BinaryLayout:
        """The signs, taken after propagation, and the scale.

        Raises
        ------
        ValueError
            If the weights or the scale are NaN or infinite.
        """
        return BinaryLayout.from_signs(
            self.latent().cpu().numpy(), self.scale.cpu().numpy().copy()
        )
