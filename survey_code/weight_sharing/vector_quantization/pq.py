"""Product quantisation: rows cut into parts, each part rounded to a codeword."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from survey_code.bits import MOST_BITS
from survey_code.layouts import CodebookLayout, Layout, PackedLayout, TurnedLayout
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.lloyd import (
    POINTS,
    as_points,
    assign_rows,
    average_rows,
    cluster_rows,
    count_reads,
    draw_points,
)
from survey_code.weight_sharing.vector_quantization.books import (
    as_numbers,
    check_books,
    most_bits,
    part_choices,
    plan_books,
    product_bytes,
)

# Rows that are turned and coded together.
ENCODED = 1 << 17


@dataclass
class ProductCodes:
    """What `quantize_product` found.

    Parameters
    ----------
    codes : ndarray of int64, shape (rows, books)
    codewords : ndarray of float64, shape (books, K, dim / books)
    losses : list of float
        Squared error after each round; one without rotation.  Where k-means ran on a
        sample, it is the sample's, whose weights stand for all rows.
    rotation : ndarray of float64, shape (dim, dim), or None
        Decoded rows are multiplied by it.
    """

    codes: np.ndarray
    codewords: np.ndarray
    losses: list[float]
    rotation: np.ndarray | None = None

    def decode(self) -> np.ndarray:
        """The rows that the codes stand for, float64 (rows, dim)."""
        books = np.arange(self.codewords.shape[0])
        parts = self.codewords[books, self.codes]  # (rows, books, dim / books)
        rows = parts.reshape(len(self.codes), -1)
        return rows if self.rotation is None else rows @ self.rotation


def split_books(table: np.ndarray, books: int) -> np.ndarray:
    """The parts of the rows, (rows, dim) -> (books, rows, dim / books)."""
    rows, dim = table.shape
    check_books(books, dim)
    return table.reshape(rows, books, dim // books).swapaxes(0, 1)


def quantize_product(
    table: np.ndarray,
    books: int,
    clusters: int,
    rng: np.random.Generator,
    *,
    weights: np.ndarray | None = None,
    rotate: bool = False,
    rounds: int = 20,
    sample: int = 0,
) -> ProductCodes:
    """Cut rows into parts and run k-means on each part alone.

    Parameters
    ----------
    table : ndarray of float, shape (rows, dim)
    books : int
        Parts of a row, a divisor of dim.
    clusters : int
        Codewords of each book.
    rng : numpy.random.Generator
    weights : ndarray, shape (rows,), optional
    rotate : bool, default False
        Turn the rows first, by `turn_books`.
    rounds : int, default 20
        Of `turn_books`.
    sample : int, default 0
        Rows seen for each codeword; 0: all.

    Notes
    -----
    Jegou et al., "Product Quantization for Nearest Neighbor Search" (2011); Ge et
    al., "Optimized Product Quantization" (2014).
    """
    points = as_points(table)
    mass = None if weights is None else weights.astype(np.float64)
    seen, own = draw_points(points, mass, sample * clusters or len(points), rng)
    parts = [
        cluster_rows(part, clusters, rng, weights=own, sample=sample)
        for part in split_books(seen, books)
    ]
    codes = np.stack([part.codes for part in parts], axis=1)
    words = np.stack([part.centroids for part in parts])
    found = ProductCodes(codes, words, [sum(part.losses[-1] for part in parts)])
    for _ in range(rounds if rotate else 0):
        turn_books(found, seen, own)
    if len(seen) < len(points):
        found.codes = encode_rows(points, found)
    return found


def turn_books(
    found: ProductCodes, points: np.ndarray, mass: np.ndarray | None
) -> None:
    r"""One improvement of the rotation, then of codes and codewords.

    Rows x are quantised as z = x R^T with R orthogonal.  For fixed codes with decoded
    rows Z the best R is :math:`U V^T` of :math:`Z^T X = U \Sigma V^T`; no step raises
    the error.
    """
    found.rotation = None
    decoded = found.decode()
    weighted = decoded if mass is None else mass[:, None] * decoded
    left, _, right = np.linalg.svd(weighted.T @ points)
    found.rotation = left @ right
    turned = split_books(points @ found.rotation.T, len(found.codewords))
    for j, part in enumerate(turned):
        moved = improve_codewords(part, found.codes[:, j], found.codewords[j], mass)
        found.codewords[j], found.codes[:, j] = moved
    errors = ((points - found.decode()) ** 2).sum(axis=1)
    found.losses.append(float(errors.sum() if mass is None else mass @ errors))


def improve_codewords(
    points: np.ndarray,
    codes: np.ndarray,
    codewords: np.ndarray,
    mass: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of Lloyd's algorithm from given codes; empty clusters stay."""
    centroids = fit_words(points, codes, codewords, mass)
    return centroids, assign_rows(points, centroids)


def fit_words(
    points: np.ndarray,
    codes: np.ndarray,
    codewords: np.ndarray,
    mass: np.ndarray | None,
) -> np.ndarray:
    """The mean of each codeword's points; one without points stays."""
    means, weight = average_rows(points, codes, len(codewords), mass)
    centroids: np.ndarray = np.where(weight[:, None] > 0, means, codewords)
    return centroids


def encode_rows(points: np.ndarray, found: ProductCodes) -> np.ndarray:
    """Codes of rows by codewords and rotation that were found, int64 (rows, books)."""
    books = len(found.codewords)
    codes = np.empty((len(points), books), dtype=np.int64)
    for start in range(0, len(points), ENCODED):
        rows = points[start : start + ENCODED]
        if found.rotation is not None:
            rows = rows @ found.rotation.T
        for j, part in enumerate(split_books(rows, books)):
            codes[start : start + ENCODED, j] = assign_rows(part, found.codewords[j])
    return codes


class PQOptions(Options):
    """Options of `ProductQuantization`."""

    books: int | None = planned(
        "parts of a row; without a budget the largest divisor up to half the dimension",
        low=1,
    )
    bits: int | None = planned(
        "bits of a code; without a budget 8, fewer where four rows shared no codeword",
        low=1, high=MOST_BITS,
    )  # fmt: skip
    width: int = option(
        1,
        "numbers of a codeword at least; of 1, a code names a number alone",
        low=1,
        tune=(1, 2, 4),
    )
    rotate: bool = option(False, "turn the rows first (OPQ)", tune=(False, True))
    weighted: bool = option(
        True,
        "rows count as often as they occur in training, where that is known",
        tune=(True, False),
    )
    half: bool = option(False, "store float16 codewords")
    sample: int = option(POINTS, "rows seen for each codeword; 0: all rows", low=0)


class ProductQuantization(AfterTraining[PQOptions]):
    """Product quantisation of a trained table (key ``pq``).

    A plan takes the most bits a row, which are mostly those of many short codewords;
    codewords of one number are scalar quantisation, each column by levels of its own.

    Notes
    -----
    Jegou et al. (TPAMI 2011); Ge et al. (TPAMI 2014).
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: PQOptions) -> Found:
        """The most bits per row that fit beside their codewords."""
        rotation = 4 * spec.embedding_dim**2 * options.rotate
        number = 2 if options.half else 4
        size = partial(product_bytes, spec, number=number, beside=rotation)
        books, bits = plan_books(
            spec, ratio, size, options.books, options.bits,
            choices=part_choices(spec, options.books, options.width),
        )  # fmt: skip
        return {"books": books, "bits": bits}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: PQOptions
    ) -> Layout:
        """Quantise an (n, d) table."""
        rows = len(weight)
        books, bits = choose_product(spec, options)
        found = quantize_product(
            weight,
            books,
            min(1 << bits, rows),
            np.random.default_rng(0),
            weights=count_reads(spec, options.weighted),
            rotate=options.rotate,
            sample=options.sample,
        )
        return freeze_product(found, bits, options.half)

    @classmethod
    def refit(
        cls, layout: Layout, weight: np.ndarray, spec: TableSpec, options: PQOptions
    ) -> Layout:
        """Codes and rotation stay; codewords become means of what they stand for."""
        matrix = layout.matrix if isinstance(layout, TurnedLayout) else None
        coded = layout.part if isinstance(layout, TurnedLayout) else layout
        assert isinstance(coded, CodebookLayout)
        assert isinstance(coded.codes, PackedLayout)
        codes, bits = coded.read_codes(np.arange(len(weight))), coded.codes.bits
        mass = count_reads(spec, options.weighted)
        rows = weight if matrix is None else weight @ matrix.T
        words = np.asarray(coded.codewords, np.float64)
        words = words.reshape(coded.books, -1, words.shape[1])
        parts = zip(split_books(rows, coded.books), codes.T, words, strict=True)
        fitted = [fit_words(part, own, held, mass) for part, own, held in parts]
        found = ProductCodes(codes, np.stack(fitted), [], matrix)
        return freeze_product(found, bits, options.half)


def choose_product(spec: TableSpec, options: PQOptions) -> tuple[int, int]:
    """Books and bits that were asked for, or those of no budget."""
    choices = part_choices(spec, options.books, options.width)
    halves = [m for m in choices if 2 * m <= spec.embedding_dim] or [1]
    bits = options.bits or most_bits(spec.num_embeddings)
    return options.books or halves[-1], bits


def freeze_product(found: ProductCodes, bits: int, half: bool) -> Layout:
    """Codes and codewords as a layout, turned where the rows were."""
    books, clusters, width = found.codewords.shape
    coded = CodebookLayout.from_codes(
        found.codes,
        as_numbers(found.codewords.reshape(books * clusters, width), half),
        np.arange(books) * clusters,
        books * width,
        bits,
    )
    if found.rotation is None:
        return coded
    return TurnedLayout(coded, found.rotation.astype(np.float32))
