"""What a method may know about a table before it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from survey_code.checks import (
    as_array,
    check_finite,
    check_number,
    check_range,
    check_switch,
)

# Standard deviation of a fresh embedding table's entries.  Every method aims
# its *composed* rows at this value, so that no method starts ahead.
INIT_STD = 0.01
# The largest int64.
MOST_COUNTED = 2**63 - 1


class OutOfReach(ValueError):
    """No configuration of a method is as small as was asked for.

    Attributes
    ----------
    nearest : float or None
        The highest ratio that it can reach; None if it cannot even reach 1.
    """

    def __init__(self, message: str, nearest: float | None) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True, eq=False)
class TableSpec:
    """The shape of a table and what its training rows say about its ids.

    Ids are numbered over all fields together: field ``f`` owns the ids from
    ``field_starts[f]`` up to, not including, ``field_starts[f + 1]``.

    Parameters
    ----------
    num_embeddings : int
        Number of ids, which is the number of rows of the full table.
    embedding_dim : int
        Length of the vector that the network reads for one id.
    field_starts : ndarray of int64, shape (fields + 1,)
        First id of each field, and ``num_embeddings`` at the end.
    train_counts : ndarray of int64, shape (num_embeddings,)
        How often each id occurs in the training rows, and only there.
    interactions : ndarray of int64, shape (pairs, 2), optional
        The observed (user, item) pairs of a top-N task, as ids.
    init_std : float, default 0.01
        Standard deviation of the full table's entries at the start.
    outside_bytes : int, default 0
        Bytes of weights per id that the network keeps outside the table; a ratio
        counts them on both sides.
    cosine : bool, default False
        Whether the network compares rows by their angles alone: numbers that only
        make a row longer then say nothing.
    content : ndarray of float32, shape (num_embeddings, width), optional
        What is known of each id before training, such as a vector of its text; a row
        of zeros where nothing is.

    Raises
    ------
    ValueError
        If a size is not a positive integer, or an array is not what it should be.
    """

    num_embeddings: int
    embedding_dim: int
    field_starts: np.ndarray
    train_counts: np.ndarray
    interactions: np.ndarray | None = None
    init_std: float = INIT_STD
    outside_bytes: int = 0
    cosine: bool = False
    content: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("num_embeddings", "embedding_dim"):
            # Python's own: the bytes of a table do not fit into 32 bits.
            size = check_range(name, getattr(self, name), 1)
            object.__setattr__(self, name, size)
        starts = as_integers(self.field_starts, "field_starts")
        counts = as_integers(self.train_counts, "train_counts")
        if (
            starts.ndim != 1
            or len(starts) < 2
            or starts[0] != 0
            or starts[-1] != self.num_embeddings
            or (np.diff(starts) < 1).any()
        ):
            raise ValueError(
                "field_starts must rise from 0 to num_embeddings "
                f"({self.num_embeddings}), got {starts.ravel()[:8].tolist()}"
            )
        if counts.shape != (self.num_embeddings,) or counts.min() < 0:
            raise ValueError(
                f"train_counts must be {self.num_embeddings} numbers from 0 up, "
                f"got shape {counts.shape}"
            )
        self._check_extras()
        object.__setattr__(self, "field_starts", starts)
        object.__setattr__(self, "train_counts", counts)

    def _check_extras(self) -> None:
        if self.interactions is not None:
            pairs = self.interactions
            if (
                not isinstance(pairs, np.ndarray)
                or pairs.dtype.kind not in "iu"
                or pairs.ndim != 2
                or pairs.shape[1] != 2
                or (pairs.size and not 0 <= pairs.min())
                or (pairs.size and pairs.max() >= self.num_embeddings)
            ):
                raise ValueError(
                    "interactions must be pairs of ids below "
                    f"{self.num_embeddings}, integers of shape (pairs, 2), got "
                    f"{getattr(pairs, 'shape', pairs)!r}"
                )
            pairs = as_integers(pairs, "interactions")
            object.__setattr__(self, "interactions", pairs)
        std = check_number("init_std", self.init_std, above=0)
        outside = check_range("outside_bytes", self.outside_bytes, 0)
        object.__setattr__(self, "init_std", std)
        object.__setattr__(self, "outside_bytes", outside)
        object.__setattr__(self, "cosine", check_switch("cosine", self.cosine))
        if self.content is not None:
            check_content(self.content, self.num_embeddings)

    @property
    def full_bytes(self) -> int:
        """Bytes of the uncompressed float32 table."""
        return 4 * self.num_embeddings * self.embedding_dim

    def budget(self, ratio: float) -> int:
        """Bytes that the table may take for all to be `ratio` times smaller.

        Raises
        ------
        ValueError
            If the ratio is not a number from 1 up.
        """
        asked = check_number("ratio", ratio, low=1)
        whole = self.full_bytes + self.outside_bytes
        return max(int(whole / asked) - self.outside_bytes, 0)

    def require(self, ratio: float, smallest: int) -> int:
        """The budget of a ratio, if a configuration of `smallest` bytes fits it.

        Raises
        ------
        OutOfReach
            If it does not; the message names the highest ratio in reach.
        """
        budget = self.budget(ratio)
        if smallest > budget:
            # Rounded down, so that the ratio named can be asked for; where the
            # division itself rounds up, one step further.
            whole = self.full_bytes + self.outside_bytes
            reach = 1000 * whole // (smallest + self.outside_bytes)
            while reach > 1000 and self.budget(reach / 1000) < smallest:
                reach -= 1
            nearest = reach / 1000 if reach >= 1000 else None
            raise OutOfReach(
                f"ratio {float(ratio):g} leaves {budget:,} bytes, but the smallest "
                f"such table takes {smallest:,}: the highest ratio it can reach is "
                + ("below 1" if nearest is None else f"{nearest:.15g}"),
                nearest,
            )
        return budget

    @classmethod
    def of_table(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        train_counts: npt.ArrayLike | None = None,
        field_starts: npt.ArrayLike | None = None,
    ) -> TableSpec:
        """The spec of a table of one's own: one field, never read, unless told."""
        rows = check_range("num_embeddings", num_embeddings, 1)
        starts = [0, rows] if field_starts is None else field_starts
        counts = np.zeros(rows, np.int64) if train_counts is None else train_counts
        return cls(
            rows,
            embedding_dim,
            as_integers(starts, "field_starts"),
            as_integers(counts, "train_counts"),
        )

    @classmethod
    def of_shape(cls, num_embeddings: int, embedding_dim: int) -> TableSpec:
        """A spec of one field about which nothing is known but its shape."""
        return cls.of_table(num_embeddings, embedding_dim)


def check_content(content: np.ndarray, rows: int) -> None:
    """Raise ValueError unless these are finite float32 vectors of so many ids."""
    if (
        not isinstance(content, np.ndarray)
        or isinstance(content, np.ma.MaskedArray)
        or content.dtype != np.float32
        or content.ndim != 2
        or len(content) != rows
        or not content.shape[1]
    ):
        kind = getattr(content, "dtype", type(content).__name__)
        raise ValueError(
            f"content must be a vector for each id, float32 of shape ({rows}, width), "
            f"got {kind} of shape {getattr(content, 'shape', '()')}"
        )
    check_finite("content", content)


def as_integers(values: npt.ArrayLike, name: str) -> np.ndarray:
    """An int64 array, or one clear ValueError."""
    array = as_array(name, values, "hold integers", "iu")
    if array.dtype == np.uint64 and array.size and array.max() > MOST_COUNTED:
        raise ValueError(f"{name} must be integers up to {MOST_COUNTED}")
    return array.astype(np.int64, copy=False)
