"""BCCF, PPH and ITQ: train real numbers, then threshold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from survey_code.baselines import FullEmbedding
from survey_code.bits import pack_codes
from survey_code.checks import check_finite
from survey_code.embedding import pick_rows
from survey_code.kernels.cpu.rows import NumberRows
from survey_code.layouts import BinaryLayout
from survey_code.layouts.binary import pack_signs
from survey_code.low_precision.binarization.signs import as_half, sign_bytes
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# The penalty's factor for the median rule, in units of a mean loss.
BALANCE = 10.0
# Numbers that are worked on at a time.
NUMBERS_SIGNED = 2**17


def split_at_medians(table: np.ndarray, field_starts: np.ndarray) -> np.ndarray:
    """True for the upper half of each column, field by field.

    Every bit is then 1 for as many ids as it is 0, and so says as much as a bit can.
    Of an odd number of ids, the one in the middle counts as upper.  Ids that tie at
    the middle are told apart by a permutation that is always the same, another one
    in each column: a column whose entries are all equal is split too.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    field_starts : ndarray of int64, shape (fields + 1,)

    Returns
    -------
    ndarray of bool, shape (rows, dim)

    Notes
    -----
    Zhou and Zha, "Learning Binary Codes for Collaborative Filtering" (KDD 2012),
    who do not say what becomes of ties.
    """
    upper = np.empty(table.shape, dtype=bool)
    for first, stop in itertools.pairwise(field_starts.tolist()):
        half = (stop - first + 1) // 2
        for column in range(table.shape[1]):
            values = np.array(table[first:stop, column])
            middle = np.partition(values, -half)[-half]  # no mean, which rounds
            chosen = values > middle
            tied = np.flatnonzero(values == middle)
            room = half - int(chosen.sum())
            if room < len(tied):
                rng = np.random.default_rng([len(values), column])
                tied = rng.permutation(tied)[:room]
            chosen[tied] = True
            upper[first:stop, column] = chosen
    return upper


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
        products = np.zeros((dim, dim))
        for _, rows in read_in_parts(table):
            products += rows.T @ np.where(rows @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(products)
        rotation = left @ right
    return rotation


def read_in_parts(
    table: NumberRows, turn: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """A table in float64, turned or not, a few megabytes of rows at a time."""
    step = max(1, NUMBERS_SIGNED // table.shape[1])
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        rows = table[part].astype(np.float64)
        yield part, rows if turn is None else rows @ turn


def take_bits(table: np.ndarray, turn: np.ndarray | None = None) -> np.ndarray:
    """True where a table, turned or not, is not negative: bool of its shape."""
    bits = np.empty(table.shape, dtype=bool)
    for part, rows in read_in_parts(table, turn):
        bits[part] = rows >= 0
    return bits


def fit_scales(
    table: np.ndarray, codes: np.ndarray, scale: str, turn: np.ndarray | None = None
) -> np.ndarray | None:
    """The scales that bring codes of +1 and -1 closest to a table, turned or not.

    For one row the error ``|w - a b|^2`` is least at ``a = mean(w * b)``, which is
    ``mean(|w|)`` where b is the sign of w; for the table at the mean over it.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, dim)
    codes : ndarray, shape (rows, dim)
        +1 and -1, or True and False.
    scale : {"none", "table", "row"}
    turn : ndarray of float64, shape (dim, dim), optional
        A matrix that rows are multiplied by first.

    Returns
    -------
    ndarray of float32, shape (rows, 1) or (1, 1), or None for ``scale="none"``
    """
    if scale == "none":
        return None
    means, total = np.empty((len(table), 1)), 0.0
    for part, rows in read_in_parts(table, turn):
        signed = np.where(codes[part] > 0, rows, -rows)
        means[part] = signed.mean(axis=1, keepdims=True)
        total += float(means[part].sum())
    if scale == "table":
        means = np.array([[total / len(table)]])
    return means.astype(np.float32)


def fit_shared_scale(table: NumberRows) -> np.ndarray:
    """`fit_scales` of a table and its own signs, for ``scale="table"``."""
    total = 0.0
    for _, rows in read_in_parts(table):
        total += float(np.abs(rows).mean(axis=1, keepdims=True).sum())
    return np.array([[total / len(table)]]).astype(np.float32)


def split_magnitudes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bits for each row's magnitude: the nearest of four levels.

    The levels are the 1/8, 3/8, 5/8 and 7/8 quantiles, the middles of quarters.

    Parameters
    ----------
    lengths : ndarray of float, shape (rows,)

    Returns
    -------
    packed : ndarray of uint8, shape (ceil(rows / 4),)
    levels : ndarray of float32, shape (4,)
    """
    levels = np.quantile(lengths, np.arange(1, 8, 2) / 8)
    codes = np.abs(lengths[:, None] - levels).argmin(axis=1).astype(np.uint8)
    return pack_codes(codes[None], 2)[0], levels.astype(np.float32)


class BalancedEmbedding(FullEmbedding):
    r"""A full table whose fields are drawn towards a mean of 0 while they learn.

    The penalty is :math:`\lambda \sum_f \|m_f\|^2` with the mean row :math:`m_f` of
    field f.  BCCF's has the sum of users and that of items in its place, beside a loss
    that is a sum too.

    Parameters
    ----------
    spec : TableSpec
    balance : float
        The factor lambda.
    seed : int, default 0
    """

    steady = True

    def __init__(self, spec: TableSpec, balance: float, seed: int = 0) -> None:
        super().__init__(spec, seed=seed)
        self.balance = balance
        self.sizes: list[int] = np.diff(spec.field_starts).tolist()

    def embed(self, ids: Tensor) -> Tensor:
        """One row per id, with gradients that are dense: the penalty moves all rows."""
        return pick_rows(ids, self.weight)

    def penalty(self) -> Tensor:
        """The squared length of each field's mean, weighted."""
        means = [field.mean(0) for field in self.weight.split(self.sizes)]
        return self.balance * torch.stack(means).square().sum()


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
    balance: float | None = planned(
        "factor of the squared length of each field's mean, added to the loss while "
        f"the table learns; unless asked, {BALANCE:g} for the median rule and 0 else",
        otherwise=0.0, low=0,
    )  # fmt: skip


class BCCF(AfterTraining[BCCFOptions]):
    """Two stages: a trained table, then one bit per entry (key ``bccf``).

    ``rule="median"`` (BCCF) thresholds each column at its median, field by field.
    The bits of a table whose columns have a median far from 0 would be those of
    another table; so a penalty draws the mean of each field to 0 while it learns.
    `compress` takes a table as it is.
    ``rule="sign"`` thresholds at 0, which keeps what all rows of a field share:
    the mean of all users points at the popular items, and the median forgets it.
    ``rule="itq"`` rotates the table first and takes signs; rows read are those of
    the rotated table, so this is for networks that compare vectors.
    ``rule="pph"`` takes signs, the direction of a row, and two more bits for its
    magnitude, which say nothing where only directions are compared (nor do scales
    of rows).

    Notes
    -----
    Zhou and Zha (KDD 2012); Gong and Lazebnik (CVPR 2011); Zhang et al.,
    "Preference Preserving Hashing for Efficient Recommendation" (SIGIR 2014).
    BCCF learns from ratings by their squared error; here the table learns by the
    task's own loss beside the penalty.  PPH's constant norm acts in training; here
    tables are compared by cosine on top-N data, which is such a norm.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: BCCFOptions) -> Found:
        """The one size, a bit per entry and the scales; and the penalty of a rule."""
        extra = scale_bytes(spec.num_embeddings, options)
        spec.require(ratio, smallest=sign_bytes(spec) + extra)
        if options.balance is not None:
            return {}
        return {"balance": BALANCE if options.rule == "median" else 0.0}

    @classmethod
    def prepare(
        cls, spec: TableSpec, options: BCCFOptions, seed: int
    ) -> BalancedEmbedding | None:
        """A table that learns under the penalty, or the usual one where it is 0."""
        balance = options.balance
        return BalancedEmbedding(spec, balance, seed) if balance else None

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: BCCFOptions
    ) -> BinaryLayout:
        """Binarise an (n, d) table."""
        check_finite("weight", weight)
        if options.rule == "pph":
            lengths = fit_scales(weight, take_bits(weight), "row")
            assert lengths is not None
            magnitudes, levels = split_magnitudes(lengths[:, 0])
            packed = pack_signs(weight)
            return BinaryLayout(packed, weight.shape[1], None, magnitudes, levels)
        turn = learn_rotation(weight) if options.rule == "itq" else None
        if options.rule == "median":
            bits = split_at_medians(weight, spec.field_starts)
        else:
            bits = take_bits(weight, turn)
        scales = fit_scales(weight, bits, options.scale, turn)
        if options.half and scales is not None:
            scales = as_half(scales)
        return BinaryLayout.from_signs(bits, scales)


def scale_bytes(rows: int, options: BCCFOptions) -> int:
    """Bytes of what is stored beside the codes."""
    if options.rule == "pph":
        return -(-rows // 4) + 16
    number = 2 if options.half else 4
    return {"none": 0, "table": number, "row": rows * number}[options.scale]
