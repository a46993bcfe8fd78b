"""Rows that ids share by how often they are read: two rules, two methods.

What is stored is a few rows, and for each id the number of its row in as few bits as
will do.  Who shares a row with whom is the only difference.
"""

import numpy as np
import torch
from torch import nn

from survey_code import Method, Options, Trained
from survey_code.embedding import as_float32, draw_normal, pick_rows
from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.options import found
from survey_code.order import largest_first


class SharedRowsOptions(Options):
    """What a plan chooses."""

    groups: int = found("rows that are stored", low=1)


class EqualReads(Trained[SharedRowsOptions]):
    """Like with like: the most read ids alone, the others in groups that are read about
    equally often.
    """

    def __init__(self, spec, options, seed=0):
        super().__init__(spec.num_embeddings, spec.embedding_dim)
        shape = (options.groups, spec.embedding_dim)
        self.rows = nn.Parameter(draw_normal(shape, spec.init_std, seed))
        groups = self.assign(spec.train_counts, options.groups)
        self.register_buffer("group", torch.from_numpy(groups))

    @staticmethod
    def assign(counts, groups):
        """The group of each id: int64 (ids,) -> int64 (ids,)."""
        order = largest_first(counts)
        reads = counts[order] + 1.0
        left = reads[::-1].cumsum()[::-1]  # from each id on
        # Whoever is read more than an equal share of what is left has a row alone.
        share = left[:groups] / np.arange(groups, 0, -1)
        alone = int(np.cumprod(reads[:groups] >= share).sum())
        rest = reads[alone:]
        before = np.cumsum(rest) - rest
        found = np.empty(len(counts), np.int64)
        found[order[:alone]] = np.arange(alone)
        found[order[alone:]] = alone + before / rest.sum() * (groups - alone)
        return found

    @classmethod
    def plan(cls, spec, ratio, options):
        """As many rows as the budget holds beside the groups' numbers."""
        ids, dim = spec.num_embeddings, spec.embedding_dim
        budget = spec.require(ratio, codebook_bytes(ids, 1, 1, 1, dim))
        most = 1
        # Fewer bits leave more bytes for rows, but can name fewer of them.
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


class DealtRows(EqualReads):
    """Unlike with unlike: the most read ids lead a group each, and all others are dealt
    out to them in turn, like cards.
    """

    @staticmethod
    def assign(counts, groups):
        """The group of each id: its place by reads, modulo the groups."""
        found = np.empty(len(counts), np.int64)
        found[largest_first(counts)] = np.arange(len(counts)) % groups
        return found


PLACE = ("weight sharing", "hashing", 2026, "own2026", ("during training",),
         ("ctr", "top-n"))  # fmt: skip
EQUAL = Method("equal_reads", "Rows of equal reads", *PLACE, EqualReads)
DEALT = Method("dealt_rows", "Dealt rows", *PLACE, DealtRows)
