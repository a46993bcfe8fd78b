"""Product quantisation: rows cut into parts, each part rounded to a codeword."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from survey_code.bits import MOST_BITS
from survey_code.layouts import CodebookLayout, Layout, TurnedLayout
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.books import (
    as_numbers,
    check_books,
    divisors,
    most_bits,
    plan_books,
    product_bytes,
)
from survey_code.weight_sharing.vector_quantization.lloyd import (
    average_rows,
    cluster_rows,
    count_reads,
    nearest_rows,
)


@dataclass
class ProductCodes:
    """What `quantize_product` found.

    Parameters
    ----------
    codes : ndarray of int64, shape (rows, books)
    codewords : ndarray of float64, shape (books, K, dim / books)
    losses : list of float
        Squared error of the whole table after each round; one without rotation.
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
) -> ProductCodes:
    r"""Cut rows into parts and run k-means on each part alone.

    Parameters
    ----------
    table : ndarray of float, shape (rows, dim)
    books : int
        Parts of a row, a divisor of dim.
    clusters : int
        Codewords of each book, 1 to rows.
    rng : numpy.random.Generator
    weights : ndarray, shape (rows,), optional
    rotate : bool, default False
        Turn the rows first; `turn_books` improves codes and rotation in turn.
    rounds : int, default 20
        Improvements of the rotation.

    Returns
    -------
    ProductCodes

    Notes
    -----
    Jegou et al., "Product Quantization for Nearest Neighbor Search" (2011); Ge et
    al., "Optimized Product Quantization" (2014), their non-parametric solution
    from the identity.
    """
    points = np.asarray(table, dtype=np.float64)
    mass = np.ones(len(points)) if weights is None else weights
    parts = [
        cluster_rows(part, clusters, rng, weights=weights)
        for part in split_books(points, books)
    ]
    found = ProductCodes(
        np.stack([part.codes for part in parts], axis=1),
        np.stack([part.centroids for part in parts]),
        [sum(part.losses[-1] for part in parts)],
    )
    for _ in range(rounds if rotate else 0):
        turn_books(found, points, mass)
    return found


def turn_books(found: ProductCodes, points: np.ndarray, mass: np.ndarray) -> None:
    r"""One improvement of the rotation, then of codes and codewords.

    Rows x are quantised as z = x R^T with R orthogonal.  For fixed codes with decoded
    rows Z the best R is :math:`U V^T` of :math:`Z^T X = U \Sigma V^T`; no step raises
    the error.
    """
    found.rotation = None
    left, _, right = np.linalg.svd((mass[:, None] * found.decode()).T @ points)
    found.rotation = left @ right
    turned = split_books(points @ found.rotation.T, len(found.codewords))
    for j, part in enumerate(turned):
        moved = improve_codewords(part, found.codes[:, j], found.codewords[j], mass)
        found.codewords[j], found.codes[:, j] = moved
    left_over = points - found.decode()
    found.losses.append(float(mass @ (left_over**2).sum(axis=1)))


def improve_codewords(
    points: np.ndarray, codes: np.ndarray, codewords: np.ndarray, mass: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step of Lloyd's algorithm from given codes; empty clusters stay."""
    means, weight = average_rows(points, codes, len(codewords), mass)
    centroids = np.where(weight[:, None] > 0, means, codewords)
    return centroids, nearest_rows(points, centroids)[0]


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
    rotate: bool = option(False, "turn the rows first (OPQ)")
    weighted: bool = option(True, "rows count as often as they occur in training")
    half: bool = option(False, "store float16 codewords")


class ProductQuantization(AfterTraining[PQOptions]):
    """Product quantisation of a trained table (key ``pq``).

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
        books, bits = plan_books(spec, ratio, size, options.books, options.bits)
        return {"books": books, "bits": bits}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: PQOptions
    ) -> Layout:
        """Quantise an (n, d) table."""
        rows, dim = weight.shape
        halves = [m for m in divisors(dim) if 2 * m <= dim] or [1]
        books = options.books or halves[-1]
        bits = options.bits or most_bits(rows)
        found = quantize_product(
            weight,
            books,
            min(1 << bits, rows),
            np.random.default_rng(0),
            weights=count_reads(spec, options.weighted),
            rotate=options.rotate,
        )
        return freeze_product(found, bits, options.half)


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
