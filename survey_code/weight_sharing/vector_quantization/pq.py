"""Product quantisation: rows cut into parts, each part rounded to a codeword."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from survey_code.layouts import CodebookLayout
from survey_code.layouts.codebook import codebook_bytes
from survey_code.layouts.layout import as_finite_table
from survey_code.spec import TableSpec
from survey_code.weight_sharing.vector_quantization.lloyd import (
    check_books,
    cluster_rows,
    count_weights,
    divisors,
    most_bits,
    nearest_rows,
    plan_books,
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

    With ``rotate``, rows x are first turned, z = x R^T with R orthogonal, and
    codes and R are improved in turn: for fixed codes with decoded rows Z the best
    R is :math:`U V^T` of :math:`Z^T X = U \Sigma V^T`, and no step raises the
    error.

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
        found.rotation = None
        left, _, right = np.linalg.svd((mass[:, None] * found.decode()).T @ points)
        found.rotation = left @ right
        turned = split_books(points @ found.rotation.T, books)
        for j, part in enumerate(turned):
            moved = improve_codewords(part, found.codes[:, j], found.codewords[j], mass)
            found.codewords[j], found.codes[:, j] = moved
        left_over = points - found.decode()
        found.losses.append(float(mass @ (left_over**2).sum(axis=1)))
    return found


def improve_codewords(
    points: np.ndarray, codes: np.ndarray, codewords: np.ndarray, mass: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step of Lloyd's algorithm from given codes; empty clusters stay."""
    from survey_code.weight_sharing.vector_quantization.lloyd import average_rows

    means, weight = average_rows(points, codes, len(codewords), mass)
    centroids = np.where(weight[:, None] > 0, means, codewords)
    return centroids, nearest_rows(points, centroids)[0]


class ProductQuantization:
    """Product quantisation of a trained table (key ``pq``).

    Options: ``books`` and ``bits`` of a code, ``rotate`` (OPQ), ``weighted`` (rows
    count as often as they occur in training) and ``half`` (float16 codewords).

    Notes
    -----
    Jegou et al. (TPAMI 2011); Ge et al. (TPAMI 2014).
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        books: int | None = None,
        bits: int | None = None,
        rotate: bool = False,
        weighted: bool = True,
        half: bool = False,
    ) -> dict[str, Any]:
        """The most bits per row that fit beside their codewords."""
        dim = spec.embedding_dim

        def size(m: int, b: int) -> int:
            codebooks = codebook_bytes(
                spec.num_embeddings, m, b, m << b, dim // m, number=2 if half else 4
            )
            return codebooks + (4 * dim * dim if rotate else 0)

        books, bits = plan_books(spec, ratio, size, books=books, bits=bits)
        return {
            "books": books,
            "bits": bits,
            "rotate": rotate,
            "weighted": weighted,
            "half": half,
        }

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        books: int | None = None,
        bits: int | None = None,
        rotate: bool = False,
        weighted: bool = True,
        half: bool = False,
        spec: TableSpec | None = None,
    ) -> CodebookLayout:
        """Quantise an (n, d) table.

        Parameters
        ----------
        weight : array or tensor, shape (n, d)
        books : int, optional
            A divisor of d; by default the largest up to d / 2.
        bits : int, optional
            Of each code; by default 8, or fewer where that leaves less than four
            rows to a codeword.
        rotate, weighted, half : bool
            ``weighted`` needs the counts of `spec`, and does nothing without.
        spec : TableSpec, optional

        Raises
        ------
        ValueError
            If an option does not fit, or the table is not 2-D and finite.
        """
        table = as_finite_table(weight)
        rows, dim = table.shape
        if books is None:
            books = max([m for m in divisors(dim) if 2 * m <= dim], default=1)
        check_books(books, dim)
        bits = most_bits(rows) if bits is None else bits
        found = quantize_product(
            table,
            books,
            min(1 << check_code_bits(bits), rows),
            np.random.default_rng(0),
            weights=count_weights(spec, weighted),
            rotate=rotate,
        )
        return freeze_product(found, bits, half)


def check_code_bits(bits: Any) -> int:
    """The bits of a code, checked."""
    from survey_code.layouts.codebook import check_bits

    check_bits("bits", bits)
    return int(bits)


def freeze_product(found: ProductCodes, bits: int, half: bool) -> CodebookLayout:
    """Codes and codewords as a layout."""
    books, clusters, width = found.codewords.shape
    words = found.codewords.reshape(books * clusters, width)
    rotation = found.rotation
    return CodebookLayout.from_codes(
        found.codes,
        as_numbers(words, half),
        np.arange(books) * clusters,
        books * width,
        bits,
        rotation=None if rotation is None else rotation.astype(np.float32),
    )


def as_numbers(values: np.ndarray, half: bool) -> np.ndarray:
    """Values as float32, or as float16 where it can hold them."""
    kind = np.float16 if half else np.float32
    with np.errstate(over="ignore"):
        stored: np.ndarray = np.asarray(values).astype(kind)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{np.dtype(kind)} cannot hold a codeword of {np.abs(values).max():.6g}"
        )
    return stored
