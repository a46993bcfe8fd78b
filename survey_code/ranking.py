"""The items of the highest scores, the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# Scores that differ by less than this share of the largest possible one (a power of
# two, negated) differ by rounding alone: products are added in another order on
# another processor.
SAME = {torch.float32: 20, torch.float64: 40}
KEY_BITS = 62
# Columns whose largest score is looked for first, on a GPU.
COLUMNS_A_BLOCK = 64


@lru_cache(maxsize=8)
def draw_ranks(count: int, device: torch.device) -> Tensor:
    """In which order equal items come: a permutation that is always the same.

    Not by their numbers: in many data sets low numbers are popular items, and a
    method with many ties would be given what it did not learn.
    """
    ranks = np.random.default_rng(count).permutation(count)
    return torch.from_numpy(ranks).to(device)


def take_from_blocks(scores: Tensor, wide: int) -> tuple[Tensor, Tensor]:
    """The largest scores of each row, falling, and their columns; which of equal ones
    at the end is not said.

    The blocks of columns of the largest maxima are found first: they hold the scores
    sought, and everything is read but once.
    """
    rows, count = scores.shape
    blocks = -(-count // COLUMNS_A_BLOCK)
    if 2 * wide >= blocks:
        return scores.topk(wide)  # no ties: sorted again by the caller
    cut = blocks * COLUMNS_A_BLOCK - count
    padded = torch.nn.functional.pad(scores, (0, cut), value=-torch.inf)
    split = padded.view(rows, blocks, COLUMNS_A_BLOCK)
    best = split.amax(-1).topk(wide).indices  # no ties: equal blocks are as good
    inside = torch.arange(COLUMNS_A_BLOCK, device=scores.device)
    columns = (best[..., None] * COLUMNS_A_BLOCK + inside).flatten(1)
    found = padded.gather(1, columns).topk(wide)  # no ties: as above
    return found.values, columns.gather(1, found.indices)


def choose_top(scores: Tensor, k: int, users: Tensor, items: Tensor) -> Tensor:
    """The k items of the largest scores of each user, the best first.

    Scores that rounding alone tells apart count as equal, and equal items come in the
    order of `draw_ranks`.

    Parameters
    ----------
    scores : Tensor of float32 or float64, shape (users, items)
        Inner products of the vectors below; minus infinity leaves an item out while
        there are others.  Its values are clamped in place.
    k : int
    users, items : Tensor, shapes (users, dim) and (items, dim)
        Vectors, finite.

    Returns
    -------
    Tensor of int64, shape (users, min(k, items))
    """
    count, k = len(items), min(k, len(items))
    bits = min(SAME[scores.dtype], KEY_BITS - 2 - count.bit_length())
    # No inner product exceeds the product of the norms.
    bounds = users.norm(dim=1, keepdim=True) * items.norm(dim=1).max()
    unit = (bounds * 2.0**-bits).clamp(min=torch.finfo(scores.dtype).tiny)
    scores.clamp_(min=-(2.0 ** (bits + 1)) * unit)
    # More than k, until none that is left out could equal the k-th.
    wide, enough = k, False
    while not enough:
        wide = min(max(wide + 8, 2 * wide), count)
        largest = torch.topk if scores.is_cpu else take_from_blocks
        values, columns = largest(scores, wide)  # no ties: sorted again below
        last = values[:, k - 1 : k] - 2 * unit
        enough = wide == count or bool((values[:, -1:] < last).all())
    # One integer for score and rank: no two of a row are equal.
    steps = (values / unit).round().long()
    keys = steps * count - draw_ranks(count, items.device)[columns]
    return columns.gather(1, keys.topk(k).indices)  # no ties: ranks differ
