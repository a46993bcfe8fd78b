"""BCCF, PPH and ITQ: train real numbers, then threshold them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from survey_code.layouts import BinaryLayout
from survey_code.layouts.binary import pack_signs
from survey_code.layouts.layout import as_finite_table
from survey_code.low_precision.binarization.signs import as_half, code_bytes
from survey_code.spec import TableSpec

RULES = ("median", "sign", "pph", "itq")
SCALES = ("none", "table", "row")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def center_at_median(table: np.ndarray, field_starts: np.ndarray) -> np.ndarray:
    """Subtract from each column its median, field by field.

    The signs of what is left split each column in half: every bit is 1 for as
    many ids as it is 0, and so says as much as a bit can.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    field_starts : ndarray of int64, shape (fields + 1,)

    Returns
    -------
    ndarray of float32, shape (rows, dim)

    Notes
    -----
    Zhou and Zha, "Learning Binary Codes for Collaborative Filtering" (KDD 2012).
    """
    centered = np.empty_like(table)
    for first, stop in itertools.pairwise(field_starts.tolist()):
        field = table[first:stop]
        centered[first:stop] = field - np.median(field, axis=0)
    return centered


def learn_rotation(table: np.ndarray, iterations: int = 50) -> np.ndarray:
    r"""A rotation after which rounding to signs loses little.

    Alternately the best codes for the rotation, :math:`B = \mathrm{sign}(W R)`,
    and the best rotation for the codes, :math:`R = U V^T` with
    :math:`U \Sigma V^T = W^T B`; neither step raises :math:`\|B - W R\|^2`.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    iterations : int, default 50

    Returns
    -------
    ndarray of float64, shape (dim, dim)
        Orthogonal: inner products of rows stay what they were.

    Notes
    -----
    Gong and Lazebnik, "Iterative Quantization" (CVPR 2011), started from a fixed
    random rotation; without their projection on principal components, because
    the number of bits is the dimension.
    """
    dim = table.shape[1]
    start = np.random.default_rng(0).normal(size=(dim, dim))
    rotation = np.linalg.qr(start).Q
    for _ in range(iterations):
        codes = np.where(table @ rotation >= 0, 1.0, -1.0)  # (rows, dim)
        left, _, right = np.linalg.svd(table.T @ codes)
        rotation = left @ right
    return rotation


def fit_scales(table: np.ndarray, codes: np.ndarray, scale: str) -> np.ndarray | None:
    """The scales that bring codes of +1 and -1 closest to a table.

    For one row the error ``|w - a b|^2`` is least at ``a = mean(w * b)``, which is
    ``mean(|w|)`` where b is the sign of w; for the table at the mean over it.

    Returns
    -------
    ndarray of float32, shape (rows, 1) or (1, 1), or None for ``scale="none"``
    """
    check_choice("scale", scale, SCALES)
    if scale == "none":
        return None
    products = table.astype(np.float64) * codes
    axis = None if scale == "table" else 1
    scales: np.ndarray = products.mean(axis=axis, keepdims=True).astype(np.float32)
    return scales


def split_magnitudes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bits for each row's magnitude: the nearest of four levels.

    The levels are the 1/8, 3/8, 5/8 and 7/8 quantiles, the middles of quarters.

    Parameters
    ----------
    lengths : ndarray of float32, shape (rows,)

    Returns
    -------
    packed : ndarray of uint8, shape (ceil(rows / 4),)
    levels : ndarray of float32, shape (4,)
    """
    levels = np.quantile(lengths, np.arange(1, 8, 2) / 8).astype(np.float32)
    codes = np.abs(lengths[:, None] - levels).argmin(axis=1).astype(np.uint8)
    padded = np.zeros(-(-len(codes) // 4) * 4, dtype=np.uint8)
    padded[: len(codes)] = codes
    spread = padded.reshape(-1, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)
    return np.bitwise_or.reduce(spread, axis=1), levels


class BCCF:
    """Two stages: a trained table, then one bit per entry (key ``bccf``).

    ``rule="median"`` (BCCF) thresholds each column at its median, field by field.
    ``rule="sign"`` thresholds at 0, which keeps what all rows of a field share:
    the mean of all users points at the popular items, and the median forgets it.
    ``rule="itq"`` rotates the table first and takes signs; rows read are those of
    the rotated table, so this is for networks that compare vectors.
    ``rule="pph"`` takes signs, the direction of a row, and two more bits for its
    magnitude.

    Notes
    -----
    Zhou and Zha (KDD 2012); Gong and Lazebnik (CVPR 2011); Zhang et al.,
    "Preference Preserving Hashing for Efficient Recommendation" (SIGIR 2014).
    BCCF's balance penalty and PPH's constant norm act in training; here the table
    is the one that the usual loop trains, compared by cosine on top-N data, which
    is PPH's constant norm.
    """

    @classmethod
    def plan(
        cls,
        spec: TableSpec,
        ratio: float,
        *,
        rule: str = "median",
        scale: str = "table",
        half: bool = False,
    ) -> dict[str, Any]:
        """The one size: a bit per entry, and the scales."""
        check_choice("rule", rule, RULES)
        check_choice("scale", scale, SCALES)
        rows, number = spec.num_embeddings, 2 if half else 4
        extra = {"none": 0, "table": number, "row": rows * number}[scale]
        if rule == "pph":
            extra = -(-rows // 4) + 16
        spec.require(ratio, smallest=code_bytes(spec) + extra)
        return {"rule": rule, "scale": scale, "half": half}

    @classmethod
    def compress(
        cls,
        weight: Any,
        *,
        rule: str = "median",
        scale: str = "table",
        half: bool = False,
        spec: TableSpec | None = None,
    ) -> BinaryLayout:
        """Binarise an (n, d) table.

        Parameters
        ----------
        weight : array or tensor, shape (n, d)
        rule : {"median", "sign", "pph", "itq"}
        scale : {"none", "table", "row"}
            What the codes are multiplied by when rows are read; ``rule="pph"``
            has its own four levels instead.
        half : bool, default False
            Store scales as float16.
        spec : TableSpec, optional
            Its fields each have their own medians.

        Raises
        ------
        ValueError
            If an option is unknown or the table is not 2-D and finite.
        """
        check_choice("rule", rule, RULES)
        table = as_finite_table(weight)
        if rule == "pph":
            magnitudes, levels = split_magnitudes(np.abs(table).mean(axis=1))
            packed = pack_signs(table)
            return BinaryLayout(packed, table.shape[1], None, magnitudes, levels)
        if rule == "itq":
            values = table = (table @ learn_rotation(table)).astype(np.float32)
        elif rule == "sign":
            values = table
        else:
            starts = np.array([0, len(table)]) if spec is None else spec.field_starts
            values = center_at_median(table, starts)
        scales = fit_scales(table, np.where(values >= 0, 1.0, -1.0), scale)
        if half and scales is not None:
            scales = as_half(scales)
        return BinaryLayout.from_signs(values, scales)
