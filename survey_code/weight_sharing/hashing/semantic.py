"""Semantic ids: what an id is, in a few codes, says which rows it shares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from survey_code.checks import check_range
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.layouts.hashed import (
    count_rows,
    mixed_index,
    table_starts,
    take_digits,
)
from survey_code.layouts.packed import PackedLayout
from survey_code.layouts.semantic import (
    JOINED,
    MOST_CODE_BITS,
    MOST_FIELD_BITS,
    SemanticLayout,
    join_codes,
    semantic_bytes,
    take_gram,
)
from survey_code.method import Found, Trained
from survey_code.options import Options, found, option
from survey_code.spec import TableSpec
from survey_code.weight_sharing.hashing.base import (
    MOST_ROWS,
    HashingTable,
    factor_std,
    join_parts,
    plan_rows,
    row_width,
)
from survey_code.weight_sharing.hashing.content import require_content
from survey_code.weight_sharing.lloyd import POINTS, quantize_residuals

# Codes of an id, and bits of a code, at most: what 48 bits hold.
MOST_LEVELS, MOST_LEVEL_BITS = 6, 8


class SemanticIDsOptions(Options):
    """Options of `SemanticIDs`."""

    levels: int = option(
        3, "codes of an id", low=1, high=MOST_LEVELS, tune=(3, 4, 2)
    )  # fmt: skip
    bits: int = option(
        3, "bits of a code", low=1, high=MOST_LEVEL_BITS, tune=(3, 4, 5)
    )  # fmt: skip
    grams: str = option(
        "prefixes",
        "stretches of the codes that name rows: the first one, the first two and so "
        "on; each code alone; or all codes as a whole",
        choices=("prefixes", "levels", "whole"), tune=("prefixes", "whole"),
    )  # fmt: skip
    tables: str = option(
        "one",
        "one table for all kinds of stretches, or one for each, with rows in "
        "proportion to how many stretches there can be",
        choices=("one", "each"),
    )
    combine: str = option("sum", "how an id's rows make one", choices=JOINED)
    rows: int = found("rows of all tables together", low=1, high=MOST_ROWS)

    def spans(self) -> list[tuple[int, int]]:
        """First code of each stretch, and the one after its last."""
        ends = range(1, self.levels + 1)
        if self.grams == "levels":
            return [(end - 1, end) for end in ends]
        return [(0, end) for end in (ends if self.grams == "prefixes" else ends[-1:])]


class SemanticIDs(HashingTable, Trained[SemanticIDsOptions]):
    """Rows named by codes of the ids' content (key ``semantic_ids``).

    Residual k-means turns the content vector of each id into a few codes, field by
    field: the first says roughly what it is, each further one corrects.  Every prefix
    of the codes, with the number of the field, is hashed into a table, and the rows are
    added up.  Ids of similar content share rows on purpose, and ids that training
    never saw read rows that others have trained.

    Parameters
    ----------
    spec : TableSpec
        Its `content` says what ids are.
    options : SemanticIDsOptions
    seed : int, default 0

    Raises
    ------
    ValueError
        If the spec has no content, or rows cannot be put side by side.

    Notes
    -----
    Singh et al., "Better Generalization with Semantic IDs: A Case Study in Ranking for
    Recommendations" (RecSys 2024), and for the prefixes Zheng et al., "Enhancing
    Embedding Representation Stability in Recommendation Systems with Semantic ID"
    (2025).  Both learn codes with a residual-quantised autoencoder; here they come from
    residual k-means of the content itself.  Both papers give such codes to the items;
    here to the ids of every field that has content.  An id without content, a row of
    zeros, has the digits of its number within the field as codes.  What is stored are
    the codes, not content nor centroids: whoever adds ids later needs these as well.
    """

    hash_names = ("index",)
    shares_rows = True
    codes: Tensor
    field_starts: Tensor

    def __init__(
        self, spec: TableSpec, options: SemanticIDsOptions, seed: int = 0
    ) -> None:
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        check_fields(spec)
        self.bits, self.spans = options.bits, options.spans()
        self.combine, self.shared = options.combine, options.tables == "one"
        sizes = share_tables(spec, options, options.rows)
        self.index = mixed_index([seed, 1], sizes)
        width = row_width(spec.embedding_dim, len(sizes), options.combine)
        std = factor_std(spec.init_std, len(sizes), options.combine)
        rows = count_rows(self.index, self.shared)
        self.values = nn.Parameter(draw_normal((rows, width), std, [seed, 0]))
        codes = code_content(spec, options.levels, options.bits, seed)
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_buffer("field_starts", torch.from_numpy(spec.field_starts.copy()))

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: SemanticIDsOptions) -> Found:
        """As many rows as the budget holds beside the codes."""
        require_content(spec)
        spans = options.spans()
        row = 4 * row_width(spec.embedding_dim, len(spans), options.combine)
        shape = options.levels, options.bits, len(spans), len(spec.field_starts) - 1
        fixed = semantic_bytes(spec.num_embeddings, *shape)
        least = 1 if options.tables == "one" else len(spans)
        return {"rows": plan_rows(spec, ratio, row, fixed, least)}

    def find_rows(self, ids: Tensor) -> list[Tensor]:
        """Rows of `values` that each stretch of the ids' codes names."""
        joined = join_codes(self.codes[ids].long(), self.bits)
        fields = None
        if len(self.field_starts) > 2:
            fields = torch.bucketize(ids, self.field_starts[1:], right=True)
        starts = table_starts(self.index, self.shared)
        return [
            take_digits(take_gram(joined, fields, *span, self.bits), how[None])[0]
            + start
            for span, how, start in zip(self.spans, self.index, starts)
        ]

    def embed(self, ids: Tensor) -> Tensor:
        """Codes, stretches, hashes; then the rows, added or side by side."""
        parts = [
            pick_rows(rows, self.values, sparse=self.regime.sparse)
            for rows in self.find_rows(ids.flatten())
        ]
        rows = join_parts(parts, self.combine)
        return rows.reshape(*ids.shape, self.embedding_dim)

    def freeze(self) -> SemanticLayout:
        """The codes, the tables and the numbers of the hashes."""
        starts = self.field_starts.cpu().numpy()[:-1]
        return SemanticLayout(
            PackedLayout.from_integers(self.codes.cpu().numpy(), self.bits),
            as_float32(self.values),
            self.index.copy(),
            np.array(self.spans, dtype=np.uint8),
            self.embedding_dim,
            self.combine,
            self.shared,
            starts.copy() if len(starts) > 1 else None,
        )


def check_fields(spec: TableSpec) -> None:
    """Raise ValueError if there are more fields than a layout can tell apart."""
    check_range("fields", len(spec.field_starts) - 1, 1, 1 << MOST_FIELD_BITS)


def share_tables(spec: TableSpec, options: SemanticIDsOptions, rows: int) -> list[int]:
    """Rows of the table that each stretch reads: of one for all, or of its own.

    A table of its own gets one row, and of what is left its share by the number of
    stretches that there can be in all fields.
    """
    spans = options.spans()
    if options.tables == "one":
        return [rows] * len(spans)
    check_range("rows", rows, len(spans), MOST_ROWS)
    sizes = np.diff(spec.field_starts).tolist()
    possible = [
        sum(min(1 << options.bits * (last - first), size) for size in sizes)
        for first, last in spans
    ]
    left, total = rows - len(spans), sum(possible)
    ends = [left * sum(possible[:j]) // total for j in range(len(spans) + 1)]
    return [1 + end - start for start, end in pairwise(ends)]


def code_content(spec: TableSpec, levels: int, bits: int, seed: int) -> np.ndarray:
    """Codes of all ids, uint8 (num_embeddings, levels); see `SemanticIDs`.

    Raises
    ------
    ValueError
        If the spec has no content.
    """
    content = require_content(spec)
    check_range("bits of all codes", levels * bits, 1, MOST_CODE_BITS)
    codes = np.empty((spec.num_embeddings, levels), dtype=np.uint8)
    for field, (start, stop) in enumerate(pairwise(spec.field_starts.tolist())):
        own, known = codes[start:stop], content[start:stop].any(axis=1)
        shifts = bits * np.arange(levels)
        own[:] = np.arange(stop - start)[:, None] >> shifts & (1 << bits) - 1
        if known.any():
            rng = np.random.default_rng([seed, 2, field])
            clusters = min(1 << bits, int(known.sum()))
            vectors = content[start:stop][known]
            own[known] = quantize_residuals(
                vectors, levels, clusters, rng, POINTS
            ).codes
    return codes
