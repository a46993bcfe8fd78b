"""Rows of equal reads: frequent ids have a row each, rare ones share.

The ids of a field are put in order of how often training reads them, and cut into
groups that are read about equally often; each group is one row.  What is stored is the
rows, and for each id the number of its group in as few bits as will do.
"""

import numpy as np
import torch
from torch import nn

from survey_code import Method, Options, Trained
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.options import found, option


class EqualReadsOptions(Options):
    """Options of `EqualReads`."""

    power: float = option(
        0.5, "ids count as reads to this power; 0: groups of as many ids", low=0,
        high=1, tune=(0.5, 0.25, 0.75, 1.0),
    )  # fmt: skip
    groups: int = found("rows that are stored", low=1)


class EqualReads(Trained[EqualReadsOptions]):
    """One row for each group of ids; the groups are read about equally often."""

    def __init__(self, spec, options, seed=0):
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        groups = group_ids(spec, options.groups, options.power)
        shape = (options.groups, spec.embedding_dim)
        self.rows = nn.Parameter(draw_normal(shape, spec.init_std, seed))
        self.register_buffer("group", torch.from_numpy(groups))

    @classmethod
    def plan(cls, spec, ratio, options):
        """As many rows as the budget holds beside the groups' numbers."""
        ids, dim = spec.num_embeddings, spec.embedding_dim
        # Fewer bits leave more bytes for rows, but can name fewer of them.
        budget = spec.require(ratio, codebook_bytes(ids, 1, 1, 1, dim))
        most = 1
        for bits in range(1, 32):
            left = budget - codebook_bytes(ids, 1, bits, 0, dim)
            most = max(most, min(left // (4 * dim), 2**bits, ids))
        return {"groups": most}

    def embed(self, ids):
        """The rows of the ids' groups."""
        return pick_rows(self.group[ids], self.rows)

    def freeze(self):
        """The rows, and the number of each id's group."""
        codes, rows = self.group.cpu().numpy()[:, None], as_float32(self.rows)
        bits = max(1, (len(rows) - 1).bit_length())
        return CodebookLayout.from_codes(codes, rows, [0], self.embedding_dim, bits)


def group_ids(spec, groups, power):
    """The group of each id, numbered field by field from the most read ids down."""
    fields = np.repeat(
        np.arange(len(spec.field_starts) - 1), np.diff(spec.field_starts)
    )
    order = np.lexsort((-spec.train_counts, fields))  # stable
    weight = (spec.train_counts[order] + 1.0) ** power
    # Where an id's share of all the weight begins, in groups.
    begins = (np.cumsum(weight) - weight) / weight.sum() * groups
    found = np.empty(len(order), np.int64)
    found[order] = np.minimum(begins, groups - 1).astype(np.int64)
    return found


METHOD = Method(
    "equal_reads", "Rows of equal reads", "weight sharing", "hashing", 2026, "own2026",
    ("during training",), ("ctr", "top-n"), EqualReads,
)  # fmt: skip
