"""Rotated quantisation: turn rows until they look normal, then round to fixed levels.

Which numbers a code should stand for depends on how the rows' entries are spread.  A
random turn makes that spread known: whatever a row was, its entries are then about
those of a normal vector of the row's length, and the best levels for these can be
computed once, before any table is seen.
"""

from __future__ import annotations

import math
from functools import cache, partial
from statistics import NormalDist

import numpy as np

from survey_code.bits import pack_codes
from survey_code.kernels.cpu.rows import cut_rows
from survey_code.layouts import Layout, LevelsLayout, TurnedLayout
from survey_code.layouts.levels import levels_bytes
from survey_code.layouts.rowwise import code_bytes
from survey_code.layouts.turned import is_power_of_two, turn_back
from survey_code.low_precision.quantization.rowwise import plan_bits
from survey_code.method import AfterTraining, Found
from survey_code.options import Options, option, planned
from survey_code.spec import TableSpec

# Bits of a code that there are.
LEVEL_BITS = (8, 7, 6, 5, 4, 3, 2, 1)

# Numbers that are turned and rounded together, and places of the search for a row's
# stretch, so that memory stays small.
TURNED_TOGETHER, SEARCHED_NUMBERS = 2**18, 2**20

# A turn by signs makes of a few large entries many of one size, which are read well,
# but not all directions are equally likely.  After two such turns inner products are
# right on average, as measured, for rows of so many columns or more.
SHORTEST_TWICE = 16

# Powers of two between which the longest row's length is stored as it is, and the least
# that levels are multiplied by, with which float32 still holds them well.
SHORTEST, LONGEST_LENGTH, LEAST_UNIT = -6, 15, -124


# -- levels ------------------------------------------------------------------------


@cache
def find_levels(bits: int) -> np.ndarray:
    r"""The Lloyd-Max levels of a normal number of variance 1, rising.

    Of all lists of :math:`2^b` levels c these read a normal number with the least mean
    squared error.  Each level is the mean of what is rounded to it:

    .. math:: c_k = \frac{\varphi(t_k) - \varphi(t_{k+1})}{\Phi(t_{k+1}) - \Phi(t_k)},
        \qquad t_k = \tfrac12 (c_{k-1} + c_k) ,

    with the density :math:`\varphi` and the distribution :math:`\Phi`.  Newton's method
    solves the positive half of these equations, from levels that are as dense as the
    cube root of the density.

    Parameters
    ----------
    bits : int, 1 to 8

    Returns
    -------
    ndarray of float64, shape (2**bits,)

    Notes
    -----
    Max, "Quantizing for Minimum Distortion" (1960); Lloyd, "Least Squares Quantization
    in PCM" (1982).

    Examples
    --------
    >>> find_levels(2).round(4).tolist()
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    count = 2 ** (bits - 1)
    wide = NormalDist(sigma=math.sqrt(3))
    shares = 0.5 + (np.arange(count) + 0.5) / (2 * count)
    half = np.array([wide.inv_cdf(share) for share in shares.tolist()])
    for _ in range(100):
        means, left, right = measure_cells(half)
        # The mean of a cell moves with both ends, and these with two levels each.
        system = np.eye(count) - np.diag((left + right) / 2)
        system -= np.diag(left[1:] / 2, -1) + np.diag(right[:-1] / 2, 1)
        # The lowest end is 0 and the highest infinite, wherever the levels are.
        system[0, 0] += left[0] / 2
        step = np.linalg.solve(system, means - half)
        half = half + step
        if np.abs(step).max() < 1e-13:
            break
    levels = np.concatenate([-half[::-1], half])
    levels.flags.writeable = False
    return levels


def measure_cells(half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of what is rounded to each positive level, and how fast these follow the
    lower and the upper end of their cells.
    """
    ends = np.concatenate([[0.0], (half[1:] + half[:-1]) / 2])
    density = np.append(np.exp(-(ends**2) / 2) / math.sqrt(2 * math.pi), 0.0)
    # What is above an end: exact far out, where differences of shares below are not.
    above = np.array([math.erfc(end / math.sqrt(2)) / 2 for end in ends.tolist()] + [0])
    mass = above[:-1] - above[1:]
    means = (density[:-1] - density[1:]) / mass
    left = density[:-1] * (means - ends) / mass
    right = density[1:-1] * (ends[1:] - means[:-1]) / mass[:-1]
    return means, left, np.append(right, 0.0)


def find_distortion(bits: int) -> float:
    """The mean squared error of a normal number of variance 1 read by `find_levels`.

    Examples
    --------
    >>> [round(find_distortion(bits), 4) for bits in (1, 2, 3, 4)]
    [0.3634, 0.1175, 0.0345, 0.0095]
    """
    half = find_levels(bits)[2 ** (bits - 1) :]
    ends = [0.0, *((half[1:] + half[:-1]) / 2).tolist(), math.inf]
    above = np.array([math.erfc(end / math.sqrt(2)) for end in ends])
    # Levels are means of their cells: what is read has so much less than all.
    return 1 - float((above[:-1] - above[1:]) @ half**2)


# A matrix, or signs, or neither.
Turn = tuple[np.ndarray | None, np.ndarray | None]

# -- turns -------------------------------------------------------------------------


def draw_turn(dim: int, draw: int = 0, unbiased: bool = False) -> Turn:
    """A random turn: a matrix, or the signs of a fast one where there is one.

    Parameters
    ----------
    dim : int
    draw : int, default 0
        Another number is another turn.
    unbiased : bool, default False
        Whether inner products are to be right on average over all turns.

    Returns
    -------
    matrix : ndarray of float32, shape (dim, dim), or None
        Orthonormal, all such matrices equally likely: the first factor of a normal
        matrix, with the signs that make this so.  By it turned rows are turned back.
    signs : ndarray of uint8, shape (times, ceil(dim / 8)), or None
        Of `TurnedLayout`, as often as `count_times` says.
    """
    rng, times = np.random.default_rng([draw, dim]), count_times(dim, unbiased)
    if times:
        return None, pack_codes(rng.integers(2, size=(times, dim)).astype(np.uint8), 1)
    basis, upper = np.linalg.qr(rng.normal(size=(dim, dim)))
    return (basis * np.sign(np.diag(upper))).T.astype(np.float32), None


def count_times(dim: int, unbiased: bool) -> int:
    """How often rows are turned by signs; 0 where a matrix turns them.

    Once where the dimension is a power of two.  For inner products that are right on
    average twice, and not at all where rows are short: they have too few signs.
    """
    if not is_power_of_two(dim) or (unbiased and dim < SHORTEST_TWICE):
        return 0
    return 1 + unbiased


def turn_rows(
    table: np.ndarray, matrix: np.ndarray | None, signs: np.ndarray | None
) -> np.ndarray:
    """Rows turned, so that the turned layout of the same turn turns them back.

    Parameters
    ----------
    table : ndarray of float64, shape (rows, dim)
    matrix, signs
        From `draw_turn`; both None: the rows as they are.

    Returns
    -------
    ndarray of float64, shape (rows, dim)
    """
    if signs is not None:
        return turn_back(table, signs)
    if matrix is not None:
        turned: np.ndarray = np.einsum("mi,ji->mj", table, matrix.astype(np.float64))
        return turned
    return table


# -- rounding ----------------------------------------------------------------------


def round_to_levels(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Codes of the nearest levels, uint8 of the rows' shape; of two the upper.

    Levels rise, and those above 0 mirror those below.
    """
    ends = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(ends, rows, side="right").astype(np.uint8)


def search_stretch(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    r"""Codes whose levels have the largest cosine with each row, of all that some
    multiple of the row is rounded to.

    As a row grows, its entries pass the ends of cells one by one.  At each such place
    one level changes, and with it :math:`\langle q, y \rangle` and :math:`|q|^2`; the
    best of all places is taken, and the row's own size is one that is tried.

    Parameters
    ----------
    rows : ndarray of float64, shape (rows, dim)
        Not all zeros, and of a spread at which the levels fit them about.
    levels : ndarray of float64, shape (2**bits,)

    Returns
    -------
    ndarray of uint8, shape (rows, dim)
    """
    count, dim = rows.shape
    half = levels[len(levels) // 2 :]
    ends, size = (half[1:] + half[:-1]) / 2, np.abs(rows)
    # How large a row must be for an entry to pass an end; entries of 0 never do, and
    # come last, where they only make the cosine smaller.
    with np.errstate(divide="ignore"):
        places = (ends / size[:, :, None]).reshape(count, -1)
    order = np.argsort(places, axis=1, kind="stable")
    gained = (size[:, :, None] * np.diff(half)).reshape(count, -1)
    grown = np.tile(np.diff(half**2), dim)[order]
    product = half[0] * size.sum(axis=1, keepdims=True)
    product = np.hstack([product, np.take_along_axis(gained, order, axis=1)])
    square = np.hstack([np.full((count, 1), dim * half[0] ** 2), grown])
    cosine = product.cumsum(axis=1) / np.sqrt(square.cumsum(axis=1))
    taken = np.arange(order.shape[1]) < cosine.argmax(axis=1)[:, None]
    passed = np.empty_like(taken)
    np.put_along_axis(passed, order, taken, axis=1)
    above = passed.reshape(count, dim, len(ends)).sum(axis=2)
    codes = np.where(rows < 0, len(half) - 1 - above, len(half) + above)
    return codes.astype(np.uint8)


def code_rows(
    rows: np.ndarray, bits: int, stretch: bool = False, unbiased: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    r"""Codes and lengths of rows that were turned.

    A row y of d entries is stretched to the length :math:`\sqrt d`, so that its entries
    have variance 1, and rounded to levels q.  What is read is q, stretched back.  Its
    length can be the one by which it is nearest to y, or the one by which its inner
    product with y is :math:`|y|^2`:

    .. math:: \hat y = \frac{\langle q, y \rangle}{|q|^2} \, q
        \qquad \text{or} \qquad
        \hat y = \frac{|y|^2}{\langle q, y \rangle} \, q .

    The second is y, and an error at a right angle to y.  If all turns are equally
    likely, no direction of the error is preferred among these, so that its inner
    product with any vector is 0 on average.

    Parameters
    ----------
    rows : ndarray of float64, shape (rows, dim)
    bits : int, 1 to 8
    stretch : bool, default False
        Find codes by `search_stretch`.
    unbiased : bool, default False

    Returns
    -------
    codes : ndarray of uint8, shape (rows, dim)
    lengths : ndarray of float64, shape (rows,)
        What levels, over the root of dim, are multiplied by; about the rows' own.
    """
    levels, dim = find_levels(bits), rows.shape[1]
    norms = np.sqrt(np.einsum("mi,mi->m", rows, rows))
    spread = rows * (math.sqrt(dim) / np.where(norms > 0, norms, 1))[:, None]
    codes = (
        search_stretch(spread, levels) if stretch else round_to_levels(spread, levels)
    )
    read = levels[codes]
    product = np.einsum("mi,mi->m", read, spread)
    if unbiased:  # a row of zeros has no product, and length 0 whatever it is
        return codes, norms * dim / np.where(norms > 0, product, 1)
    return codes, norms * product / np.einsum("mi,mi->m", read, read)


def choose_unit(longest: float) -> int:
    """The power of two that levels are multiplied by, so that float16 holds lengths.

    0 unless the longest row is shorter than 2**-6 or as long as 2**15; else lengths
    are divided by it, and the longest is half of 2**15 at least.

    Examples
    --------
    >>> choose_unit(3.0), choose_unit(1e-4), choose_unit(1e30)
    (0, -28, 85)
    """
    if not longest or 2.0**SHORTEST <= longest < 2.0**LONGEST_LENGTH:
        return 0
    power = math.frexp(longest)[1] - LONGEST_LENGTH
    return max(power, LEAST_UNIT)


# -- the method --------------------------------------------------------------------


class RotatedOptions(Options):
    """Options of `RotatedQuantization`."""

    bits: int = planned("bits of a code", choices=LEVEL_BITS, otherwise=4)
    rotate: bool = option(True, "turn the rows first", tune=(True, False))
    stretch: bool = option(
        False, "stretch each row until its codes fit it best", tune=(False, True)
    )
    unbiased: bool = option(
        False, "store lengths by which inner products are right on average"
    )
    draw: int = option(0, "which of the random turns", low=0)


class RotatedQuantization(AfterTraining[RotatedOptions]):
    """Rows turned at random and rounded to levels of normal numbers (key ``rotated``).

    Stored are the codes, 2 bytes of length a row, the levels, and the turn: a bit or
    two for each column where the dimension is a power of two, else a matrix of float32;
    see `count_times`.

    Notes
    -----
    Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal Distortion
    Rate" (2025), for turn and levels; of the paper we know the abstract.  There the
    levels are those of a coordinate of a random unit vector; here of the normal number
    that it comes close to.  There one bit more, of what rounding left over, makes inner
    products right on average; here it is the length, by the estimator of Gao and Long,
    "RaBitQ" (2024): see `code_rows`.  The reason given there holds for the matrix; for
    the fast turn it is measured.  Gao et al. (2024) stretch rows over a grid of whole
    numbers, as `search_stretch` does over levels; we implement both as we understand
    them.
    """

    @classmethod
    def plan(cls, spec: TableSpec, ratio: float, options: RotatedOptions) -> Found:
        """The most bits whose rows fit into the budget, levels and turn included."""
        shape = spec.num_embeddings, spec.embedding_dim
        how = {"rotate": options.rotate, "unbiased": options.unbiased}
        size = partial(rotated_bytes, *shape, **how)
        return {"bits": plan_bits(spec, ratio, options.bits, size, LEVEL_BITS)}

    @classmethod
    def compress(
        cls, weight: np.ndarray, spec: TableSpec, options: RotatedOptions
    ) -> Layout:
        """Turn and round an (n, d) table."""
        (count, dim), bits = weight.shape, options.bits
        turn: Turn = (None, None)
        if options.rotate:
            turn = draw_turn(dim, options.draw, options.unbiased)
        width = code_bytes(dim, bits)
        rows = np.empty((count, width + 2), dtype=np.uint8)
        lengths = np.empty(count)
        together = TURNED_TOGETHER
        if options.stretch:
            together = max(SEARCHED_NUMBERS >> bits - 1, dim)
        for part in cut_rows(count, dim, together):
            turned = turn_rows(weight[part].astype(np.float64), *turn)
            codes, lengths[part] = code_rows(
                turned, bits, options.stretch, options.unbiased
            )
            rows[part, :width] = pack_codes(codes, bits)
        unit = choose_unit(float(lengths.max()))
        stored = np.ldexp(lengths, -unit).astype(np.float16)[:, None]
        rows[:, width:] = stored.view(np.uint8)
        levels = np.ldexp(find_levels(bits) / math.sqrt(dim), unit).astype(np.float32)
        coded = LevelsLayout(rows, levels, dim, bits)
        return TurnedLayout(coded, *turn) if options.rotate else coded


def rotated_bytes(
    rows: int, dim: int, bits: int, rotate: bool = True, unbiased: bool = False
) -> int:
    """Bytes of a table of turned codes.

    Examples
    --------
    >>> rotated_bytes(1000, 64, bits=2), rotated_bytes(1000, 60, bits=2)
    (18024, 31416)
    """
    turn = count_times(dim, unbiased) * -(-dim // 8) or 4 * dim**2
    return levels_bytes(rows, dim, bits, scaled=True) + rotate * turn
