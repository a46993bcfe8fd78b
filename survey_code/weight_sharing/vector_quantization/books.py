"""Books of codewords: how many, of how many bits, and what they take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from survey_code.bits import MOST_BITS, stream_words
from survey_code.checks import check_range
from survey_code.layouts.codebook import codebook_bytes
from survey_code.layouts.routed import routing_bytes
from survey_code.options import Options, option, planned
from survey_code.order import most_frequent
from survey_code.spec import TableSpec

P = TypeVar("P")


class BookOptions(Options):
    """What every table of codes may be asked."""

    books: int = planned("codes of a row", low=1)
    bits: int = planned("bits of a code", low=1, high=MOST_BITS)


class PartOptions(BookOptions):
    """What every table may be asked whose rows are cut into parts."""

    width: int = option(
        1, "numbers of a codeword at least; of 1, a code names a number alone", low=1
    )


def part_choices(
    spec: TableSpec, books: int | None, width: int, most: int | None = None
) -> list[int]:
    """Numbers of parts, at most `most`, whose codewords have `width` numbers or more.

    Raises
    ------
    ValueError
        If rows are shorter, or `books` was asked for and leaves less.
    """
    dim = spec.embedding_dim
    if books is not None:
        check_books(books, dim)
    check_range("width", width, 1, dim // (books or 1))
    return [m for m in divisors(dim) if dim // m >= width and m <= (most or dim)]


def divisors(dim: int) -> list[int]:
    """Numbers of books whose codewords have whole lengths, the fewest first."""
    return [parts for parts in range(1, dim + 1) if dim % parts == 0]


def check_books(books: int, dim: int) -> None:
    """Raise ValueError unless rows can be cut into so many parts."""
    if books < 1 or dim % books:
        raise ValueError(f"books must divide the dimension {dim}, got {books!r}")


def most_bits(rows: int, top: int = 8) -> int:
    """Bits of a code for which four rows share a codeword, 1 to `top`."""
    return min(max(int(np.log2(max(rows, 1) / 4)), 1), top)


def product_bytes(
    spec: TableSpec,
    books: int,
    bits: int,
    *,
    groups: int = 1,
    heads: int = 0,
    head_bits: int = 0,
    number: int = 4,
    beside: int = 0,
) -> int:
    """Bytes of codes for the parts of rows, and of their codewords.

    The arguments are those of `codebook_bytes`, and what is stored `beside`; heads,
    whose codes have `head_bits`, share the others' books.

    Raises
    ------
    ValueError
        If rows cannot be cut into so many parts.
    """
    check_books(books, spec.embedding_dim)
    if heads:
        beside += 4 * stream_words(heads * books, head_bits)
        beside += routing_bytes(spec.num_embeddings, [heads])
    return beside + codebook_bytes(
        spec.num_embeddings - heads, books, bits,
        groups * books << max(bits, head_bits), spec.embedding_dim // books,
        groups=groups, number=number,
    )  # fmt: skip


def choose_among(asked: int | None, choices: Iterable[int]) -> Iterable[int]:
    """What was asked for, or else what there is to choose from."""
    return choices if asked is None else (asked,)


def choose_fitting(
    spec: TableSpec,
    ratio: float,
    sizes: dict[P, int],
    value: Callable[[P], tuple[int, int]],
) -> P:
    """The configuration of the largest value among those inside a budget.

    Raises
    ------
    OutOfReach
        If none is inside.
    """
    budget = spec.require(ratio, smallest=min(sizes.values()))
    return max((found for found in sizes if sizes[found] <= budget), key=value)


def longest_codes(plan: tuple[int, int]) -> tuple[int, int]:
    """Most bits a row; of equal ones the fewest books, whose codewords are longest."""
    books, bits = plan
    return books * bits, -books


def plan_books(
    spec: TableSpec,
    ratio: float,
    size: Callable[[int, int], int],
    books: int | None,
    bits: int | None,
    *,
    choices: Iterable[int] | None = None,
    top: int = 8,
    rows: int | None = None,
    value: Callable[[tuple[int, int]], tuple[int, int]] = longest_codes,
) -> tuple[int, int]:
    """Books and bits of the largest value inside a budget.

    Parameters
    ----------
    spec : TableSpec
    ratio : float
    size : callable
        Bytes of (books, bits).
    books, bits : int or None
        What was asked.
    choices : iterable of int, optional
        Numbers of books to choose from; by default the divisors of the dimension.
    top : int, default 8
        Most bits of a code.
    rows : int, optional
        Rows that share a book, where these are fewer than the table's.
    value : callable, default `longest_codes`
    """
    largest = most_bits(rows or spec.num_embeddings, top)
    pairs = itertools.product(
        choose_among(books, choices or divisors(spec.embedding_dim)),
        choose_among(bits, range(1, largest + 1)),
    )
    return choose_fitting(spec, ratio, {pair: size(*pair) for pair in pairs}, value)


def pick_heads(spec: TableSpec, heads: int) -> np.ndarray:
    """The ids that occur most often, rising; of equals the lower ids."""
    return most_frequent(spec.train_counts, heads)


def as_numbers(values: np.ndarray, half: bool = False) -> np.ndarray:
    """Values as float32, or as float16 where it can hold them."""
    kind = np.float16 if half else np.float32
    with np.errstate(over="ignore"):
        stored: np.ndarray = np.asarray(values).astype(kind)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{np.dtype(kind)} cannot hold a codeword of {np.abs(values).max():.6g}"
        )
    return stored


def copy_words(values: Tensor) -> np.ndarray:
    """A copy of codewords, those of all books below one another, as float32."""
    words: np.ndarray = values.detach().float().cpu().numpy()
    return words.reshape(-1, values.shape[-1]).copy()


def as_codes(codes: np.ndarray, bits: int) -> Tensor:
    """Codes in the smallest integers that a table reads them from."""
    return torch.from_numpy(codes.astype(np.uint8 if bits <= 8 else np.int32))
