"""BCCF, PPH and ITQ: train real numbers, then threshold them."""

from __future__ import annotations

import itertools

import numpy as np

from survey_code.bits import pack_codes
from survey_code.layouts import BinaryLayout
from survey_code.layouts.binary import pack_signs
from survey_code.low_precision.binarization.signs import as_half, sign_bytes
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option
from survey_code.spec import TableSpec


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
    if scale == "none":
        return None
    products = table.astype(np.float64) * codes
    axis = {"table": None, "row": 1}[scale]
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
    return pack_codes(codes[None], 2)[0], levels


class BCCFOptions(Options):
    """Options of `BCCF`."""

    rule: str = option(
        "median",
        "how codes are found: signs around the medians, around 0, with two bits of "
        "magnitude beside them, or of a rotated table",
        choices=("median", "sign", "pph", "itq"),
    )
    scale: str = option(
        "table",
        "who has a number that codes are multiplied by (pph has four levels instead)",
        choices=("none", "table", "row"),
    )
    half: bool = option(False, "store scales as float16")


class BCCF(AfterTraining[BCCFOptions]):
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
    def plan(cls, spec: TableSpec, ratio: float, options: BCCFOptions) -> Found:
        """The one size: a bit per entry, and the scales."""
        extra = scale_bytes(spec.num_embeddings, options)
        spec.require(ratio, smallest=sign_bytes(spec) + extra)
        return {}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: BCCFOptions
    ) -> BinaryLayout:
        """Binarise an (n, d) table."""
        if options.rule == "pph":
            magnitudes, levels = split_magnitudes(np.abs(weight).mean(axis=1))
            packed = pack_signs(weight)
            return BinaryLayout(packed, weight.shape[1], None, magnitudes, levels)
        if options.rule == "itq":
            weight = (weight @ learn_rotation(weight)).astype(np.float32)
        values = weight
        if options.rule == "median":
            values = center_at_median(weight, spec.field_starts)
        scales = fit_scales(weight, np.where(values >= 0, 1.0, -1.0), options.scale)
        if options.half and scales is not None:
            scales = as_half(scales)
        return BinaryLayout.from_signs(values, scales)


def scale_bytes(rows: int, options: BCCFOptions) -> int:
    """Bytes of what is stored beside the codes."""
    if options.rule == "pph":
        return -(-rows // 4) + 16
    number = 2 if options.half else 4
    return {"none": 0, "table": number, "row": rows * number}[options.scale]
