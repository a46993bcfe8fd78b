"""The three kinds of task, as plain arrays: clicks, interactions, streams.

All ids are *global*: field ``f`` owns ``[field_starts[f], field_starts[f+1])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from survey_code.checks import check_labels
from survey_code.spec import INIT_STD, TableSpec


@dataclass(frozen=True, eq=False)
class ClickRows:
    """Labelled rows: one id per field, and whether the user clicked.

    Parameters
    ----------
    ids : ndarray of int64, shape (rows, fields)
    labels : ndarray of float32, shape (rows,), each 0 or 1

    Raises
    ------
    ValueError
        If they are not such arrays.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        for name, kinds in (("ids", "iu"), ("labels", "fiub")):
            held = getattr(self, name)
            known = isinstance(held, np.ndarray) and held.dtype.kind in kinds
            if not known or isinstance(held, np.ma.MaskedArray):
                raise ValueError(
                    f"{name} must be an array of numbers, got {held!r:.80}"
                )
        shapes = self.ids.shape, self.labels.shape
        if self.ids.ndim != 2 or self.labels.shape != self.ids.shape[:1]:
            raise ValueError(
                "ids must have shape (rows, fields) and labels (rows,), got "
                f"{shapes[0]} and {shapes[1]}"
            )
        check_labels(self.labels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ClickData:
    """A click-prediction task: train, validation and test rows.

    Parameters
    ----------
    name : str
        Name and edition, e.g. ``"frappe_x1 (rebuilt train)"``.
    field_names : tuple of str
    field_starts : ndarray of int64, shape (fields + 1,)
    train, valid, test : ClickRows
    source : dict
        Where the rows come from: checksums, edition, generator settings.
    best : dict
        ``{"valid": {"auc": ..., "log_loss": ...}, "test": ...}``, the best
        reachable metrics where the truth is known (synthetic data), else empty.
    content : ndarray of float32, shape (num_embeddings, width), optional
        What is known of each id before its first click; zeros where nothing is.
    """

    task: ClassVar[str] = "ctr"

    name: str
    field_names: tuple[str, ...]
    field_starts: np.ndarray
    train: ClickRows
    valid: ClickRows
    test: ClickRows
    source: dict[str, Any] = field(default_factory=dict)
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    content: np.ndarray | None = None

    @property
    def num_embeddings(self) -> int:
        """Number of ids of all fields together."""
        return int(self.field_starts[-1])

    def shows_unseen(self, rows: ClickRows) -> np.ndarray:
        """Whether each row shows an id that no training row does, bool (rows,)."""
        seen = np.zeros(self.num_embeddings, dtype=bool)
        seen[self.train.ids.ravel()] = True
        return (~seen[rows.ids]).any(axis=1)

    def spec(self, embedding_dim: int, init_std: float = INIT_STD) -> TableSpec:
        """What a method may know: shape, fields, counts of training rows, content."""
        counts = np.bincount(self.train.ids.ravel(), minlength=self.num_embeddings)
        return TableSpec(
            self.num_embeddings,
            embedding_dim,
            self.field_starts,
            counts,
            init_std=init_std,
            content=self.content,
        )


@dataclass(frozen=True, eq=False)
class InteractionData:
    """A top-N task: which user met which item.

    Users are ids ``0 .. num_users - 1``; item ``j`` is id ``num_users + j``.

    Parameters
    ----------
    name : str
    num_users, num_items : int
    train, test : ndarray of int64, shape (pairs, 2)
        Columns: user id, item id (global ids, so item ids start at num_users).
    valid : ndarray of int64, shape (pairs, 2)
        Hold-out of the published train part; empty once training uses it all.
    source : dict
    content : ndarray of float32, shape (num_embeddings, width), optional
        As in `ClickData`, of users and then items.
    """

    task: ClassVar[str] = "top-n"

    name: str
    num_users: int
    num_items: int
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    source: dict[str, Any] = field(default_factory=dict)
    content: np.ndarray | None = None

    @property
    def field_names(self) -> tuple[str, ...]:
        """The two fields of a top-N set."""
        return ("user", "item")

    @property
    def field_starts(self) -> np.ndarray:
        """First user id, first item id, number of ids."""
        return np.array([0, self.num_users, self.num_users + self.num_items])

    @property
    def num_embeddings(self) -> int:
        """Number of users and items together."""
        return self.num_users + self.num_items

    def spec(self, embedding_dim: int, init_std: float = INIT_STD) -> TableSpec:
        """What a method may know: shape, fields, counts, training pairs, content."""
        counts = np.bincount(self.train.ravel(), minlength=self.num_embeddings)
        return TableSpec(
            self.num_embeddings,
            embedding_dim,
            self.field_starts,
            counts,
            interactions=self.train,
            init_std=init_std,
            content=self.content,
        )


@dataclass(frozen=True, eq=False)
class StreamData:
    """Labelled rows in time order, cut into windows.

    Parameters
    ----------
    name : str
    field_names : tuple of str
    field_starts : ndarray of int64, shape (fields + 1,)
    windows : tuple of ClickRows
        Window ``t`` comes wholly before window ``t + 1``.
    source : dict
    best : tuple of dict
        Best reachable ``{"auc", "log_loss"}`` of each window, where known.
    content : ndarray of float32, shape (num_embeddings, width), optional
        As in `ClickData`; the same in all windows.
    """

    task: ClassVar[str] = "ctr"

    name: str
    field_names: tuple[str, ...]
    field_starts: np.ndarray
    windows: tuple[ClickRows, ...]
    source: dict[str, Any] = field(default_factory=dict)
    best: tuple[dict[str, float], ...] = ()
    content: np.ndarray | None = None

    @property
    def num_embeddings(self) -> int:
        """Number of ids of all fields together."""
        return int(self.field_starts[-1])

    def as_clicks(self, train: int, valid: int = 1) -> ClickData:
        """The first `train` windows to learn from, the next `valid` to select on.

        All later windows are the test.
        """
        whole = all(isinstance(n, Integral) and n is not True for n in (train, valid))
        fits = whole and train >= 1 and valid >= 1 and train + valid < len(self.windows)
        if not fits:
            raise ValueError(
                f"train={train!r} and valid={valid!r} windows must be positive and "
                f"leave a test window of {len(self.windows)}"
            )
        parts = (
            self.windows[:train],
            self.windows[train : train + valid],
            self.windows[train + valid :],
        )
        train_rows, valid_rows, test_rows = (join_rows(part) for part in parts)
        return ClickData(
            self.name,
            self.field_names,
            self.field_starts,
            train_rows,
            valid_rows,
            test_rows,
            source=self.source,
            content=self.content,
        )


# What a network can learn from as a whole; a stream is cut into one first.
DataSet = ClickData | InteractionData


def join_rows(windows: Sequence[ClickRows]) -> ClickRows:
    """Rows of several windows, one after another."""
    return ClickRows(
        np.concatenate([window.ids for window in windows]),
        np.concatenate([window.labels for window in windows]),
    )
