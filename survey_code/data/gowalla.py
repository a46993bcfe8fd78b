"""Gowalla: which places will a user check in at?

Cho, Myers and Leskovec (2011); the split of NGCF (2019) and LightGCN (2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from survey_code.checks import check_number, check_range
from survey_code.data.files import DataFile, read_data
from survey_code.data.tasks import InteractionData

USERS, ITEMS = 29_858, 40_981
PAIRS = {"train": 810_128, "test": 217_242}
GOWALLA_ADDRESS = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data/gowalla/{}"
GOWALLA_EDITIONS = {
    "train": {
        "7244696fdeb23911319cf7b689f2e15a3c4c92549c873a5677b44e3f13cc3e62": "published"
    },
    "test": {
        "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3": "published"
    },
}


def load_gowalla(
    hold_out: float = 0.1, seed: int = 0, renumber: int | None = None
) -> InteractionData:
    """Gowalla with its published split, and a hold-out of the training pairs.

    No validation part is published.  A share of each user's training pairs
    (rounded to the nearest; every user has at least 8) is held out at random.

    Parameters
    ----------
    hold_out : float, default 0.1
        Share of the training pairs to hold out; 0 keeps all for training.
    seed : int, default 0
        Of the hold-out.
    renumber : int, optional
        Number users and items anew, at random with this seed.  The published numbers
        follow the order of the file: items that stand side by side were visited by the
        same users, and methods that share rows between neighbours may profit.

    Returns
    -------
    InteractionData
        29,858 users, 40,981 items.

    Raises
    ------
    ValueError, FileNotFoundError
        If `hold_out` is not from 0 up to, not including, 1; and see
        `survey_code.data.files.read_data`.
    """
    hold_out = check_number("hold_out", hold_out, low=0, below=1)
    seed = check_range("seed", seed, 0)
    if renumber is not None:
        renumber = check_range("renumber", renumber, 0)
    parts, source = read_parts()
    held_out = choose_hold_out(parts["train"][:, 0], hold_out, seed)
    name = "gowalla"
    if renumber is not None:
        name = f"gowalla (renumbered, seed {renumber})"
        numbers = draw_numbers(renumber)
        parts = {part: numbers[pairs] for part, pairs in parts.items()}
    return InteractionData(
        name,
        USERS,
        ITEMS,
        train=parts["train"][~held_out],
        valid=parts["train"][held_out],
        test=parts["test"],
        source={**source, "hold_out": hold_out, "hold_out_seed": seed},
    )


def read_parts() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The pairs of each published part, and where they come from."""
    parts, source = {}, {}
    for part in PAIRS:
        name = f"{part}.txt"
        address = GOWALLA_ADDRESS.format(name)
        file = DataFile("gowalla", name, address, GOWALLA_EDITIONS[part])
        content, source[part] = read_data(file)
        parts[part] = parse_pairs(content, part)
    return parts, source


def parse_pairs(content: bytes, part: str) -> np.ndarray:
    """Pairs of ids from lines ``user item item ...``; items follow the users."""
    lines = [line.split() for line in content.decode().splitlines()]
    users = np.repeat(
        [int(line[0]) for line in lines if line],
        [len(line) - 1 for line in lines if line],
    )
    items = np.array([int(item) for line in lines for item in line[1:]])
    pairs = np.stack([users, USERS + items], axis=1)
    if len(pairs) != PAIRS[part] or users.max() >= USERS or items.max() >= ITEMS:
        raise ValueError(
            f"gowalla {part}: {len(pairs)} pairs, expected {PAIRS[part]} of "
            f"{USERS} users and {ITEMS} items"
        )
    return pairs


def draw_numbers(seed: int) -> np.ndarray:
    """A new id for each id, at random among the users or among the items."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(USERS), USERS + rng.permutation(ITEMS)])


def choose_hold_out(users: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which pairs are held out: the same share of every user's, at random."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(users)
    # Order the pairs by user, at random within each, and take each user's first.
    order = np.lexsort((rng.random(len(users)), users))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    place = np.empty(len(users), dtype=np.int64)
    place[order] = np.arange(len(users)) - starts[users[order]]
    chosen: np.ndarray = place < np.rint(share * counts)[users]
    return chosen
