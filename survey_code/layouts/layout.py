"""The stored form of a table: a few arrays, and how to read a row from them."""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar

import numpy as np

from survey_code.layouts import files

# Arrays are NumPy's, or CuPy's after to_gpu(): one code reads both.
Array = Any

MODES = ("sum", "mean", "max")


class Layout:
    """What is deployed: a few arrays, and how a row is read from them.

    A subclass names its arrays in `array_names` and its integers in
    `shape_names`, both attributes of the instance, and implements
    `read_rows`.  Everything a user calls is here: `lookup`, `bag`, `save`,
    `to_gpu` and `nbytes`.

    Parameters
    ----------
    num_embeddings : int
        Number of ids; ids are ``0 .. num_embeddings - 1``.
    embedding_dim : int
        Length of a row.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    array_names: ClassVar[tuple[str, ...]]
    shape_names: ClassVar[tuple[str, ...]] = ("num_embeddings", "embedding_dim")

    # A layout that computes rows (hashed, generator) can serve ids that were
    # never trained; it does so only where its maker asked for it.
    open_ids: int = 0
    # On a GPU: the rows once more, laid out for a kernel that reads, decodes and
    # pools them, where the stored arrays themselves are not.
    device: Any = None

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(
                "a table needs at least one row and one column, got "
                f"num_embeddings={num_embeddings}, embedding_dim={embedding_dim}"
            )
        self.num_embeddings = int(num_embeddings)
        self.embedding_dim = int(embedding_dim)

    # -- what subclasses say -------------------------------------------------

    def read_rows(self, ids: Array) -> Array:
        """Rows of checked ids: int64 (m,) -> float32 (m, embedding_dim)."""
        raise NotImplementedError

    def fuse(self) -> Any:
        """Rows for a kernel that finds, decodes and pools them; the arrays are CuPy's.

        None where no kernel reads this layout: the code for arrays does then.
        """
        return None

    def validate(self) -> None:
        """Raise ValueError if arrays and integers contradict each other."""

    # -- what users call -----------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """The stored arrays by name; an optional array that is None is left out."""
        named = {name: getattr(self, name) for name in self.array_names}
        return {name: array for name, array in named.items() if array is not None}

    def shape_integers(self) -> dict[str, int]:
        """The integers that the file's metadata holds."""
        return {name: int(getattr(self, name)) for name in self.shape_names}

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays: the file's size less its header."""
        return sum(int(array.nbytes) for array in self.arrays().values())

    @property
    def on_gpu(self) -> bool:
        """Whether the arrays are CuPy's."""
        first = next(iter(self.arrays().values()))
        return not isinstance(first, np.ndarray)

    @property
    def held_bytes(self) -> int:
        """Bytes in memory: `nbytes`, or more where a GPU pads rows for speed."""
        arrays = list(self.arrays().values())
        arrays += [] if self.device is None else [self.device]
        return sum(
            int(array.held_bytes if hasattr(array, "held_bytes") else array.nbytes)
            for array in arrays
        )

    @property
    def fused(self) -> Any:
        """Rows on a GPU that one kernel reads, decodes and pools; else None."""
        first = getattr(self, self.array_names[0])
        return first if hasattr(first, "pool") else self.device

    def lookup(self, ids: Array, check: bool = True) -> Array:
        """Read rows.

        Parameters
        ----------
        ids : integer array of any shape
        check : bool, default True
            On a GPU, wait for the kernel and raise for a bad id.  Without it
            nothing waits, and the row of a bad id is undefined.

        Returns
        -------
        array of float32, shape (*ids.shape, embedding_dim)

        Raises
        ------
        IndexError
            If an id is negative or not below `num_embeddings`.
        ValueError
            If ids are not integers.
        TypeError
            If the layout is on a GPU and the ids are not, or the reverse.
        """
        if self.fused is not None:
            return self.fused.read(self.move_ids(ids), check)
        ids = self.check_ids(ids)
        rows = self.read_rows(ids.ravel())
        return rows.reshape(*ids.shape, self.embedding_dim)

    def bag(
        self,
        ids: Array,
        offsets: Array | None = None,
        per_sample_weights: Array | None = None,
        mode: str = "sum",
        check: bool = True,
    ) -> Array:
        """Read rows and pool them bag by bag, as torch.nn.EmbeddingBag does.

        Parameters
        ----------
        ids : integer array, shape (m,), or (bags, length) without offsets
        offsets : integer array, shape (bags,)
            Where each bag starts; the first is 0.  An empty bag gives zeros.
        per_sample_weights : array of float32, same shape as ids, optional
            Factor of each row; with ``mode="sum"`` only.
        mode : {"sum", "mean", "max"}
        check : bool, default True
            As for `lookup`.

        Returns
        -------
        array of float32, shape (bags, embedding_dim)
        """
        if self.fused is not None:
            ids = self.move_ids(ids)
            weights = check_weights(ids, per_sample_weights, mode, array_module(ids))
            return self.fused.pool(ids, offsets, weights, mode, check)
        ids = self.check_ids(ids)
        xp = array_module(ids)
        starts = check_offsets(ids, offsets, xp)
        weights = check_weights(ids, per_sample_weights, mode, xp)
        rows = self.read_rows(ids.ravel())
        if weights is not None:
            rows = rows * weights.reshape(-1, 1)
        return pool_rows(rows, starts, mode, xp)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: beside its place first, then renamed."""
        files.write_file(
            path, self.name, self.version, self.shape_integers(), self.to_cpu().arrays()
        )

    def to_gpu(self) -> Layout:
        """A copy whose arrays are CuPy's.

        Raises
        ------
        RuntimeError
            If CuPy is not installed or no GPU is present.
        """
        from survey_code.gpu import load_cupy

        if self.on_gpu:
            return self
        twin = self._converted(load_cupy().asarray)
        twin.device = twin.fuse()
        return twin

    def to_cpu(self) -> Layout:
        """A copy whose arrays are NumPy's; the layout itself where they are."""
        return self._converted(lambda array: array.get()) if self.on_gpu else self

    def check_ids(self, ids: Array) -> Array:
        """The ids as an int64 array on the layout's side, or one clear error."""
        ids = self.move_ids(ids)
        if ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers, got dtype {ids.dtype}")
        if ids.size:
            low, high = int(ids.min()), int(ids.max())
            limit = 2**63 if self.open_ids else self.num_embeddings
            if low < 0 or high >= limit:
                wrong = low if low < 0 else high
                raise IndexError(
                    f"id {wrong} is out of range for a table of "
                    f"{self.num_embeddings} rows (ids are 0 to {limit - 1})"
                )
        return ids.astype(np.int64, copy=False)

    def move_ids(self, ids: Array) -> Array:
        """The ids as an array on the layout's side."""
        if not self.on_gpu:
            return as_numpy(ids)
        from survey_code.gpu import as_cupy

        return as_cupy(ids)

    def _converted(self, convert: Any) -> Layout:
        twin = copy.copy(self)
        twin.device = None
        for name, array in self.arrays().items():
            setattr(twin, name, convert(array))
        return twin

    @classmethod
    def from_file(cls, shape: dict[str, int], arrays: dict[str, np.ndarray]) -> Layout:
        """Rebuild a layout from what `files.read_file` returns."""
        missing = set(cls.shape_names) - set(shape)
        unknown = set(arrays) - set(cls.array_names)
        if missing or unknown:
            raise ValueError(
                f"a {cls.name} layout lacks {sorted(missing)} "
                f"and does not know {sorted(unknown)}"
            )
        layout = cls.__new__(cls)
        Layout.__init__(layout, shape["num_embeddings"], shape["embedding_dim"])
        for name in cls.shape_names:
            setattr(layout, name, int(shape[name]))
        for name in cls.array_names:
            setattr(layout, name, arrays.get(name))
        layout.validate()
        return layout

    def __repr__(self) -> str:
        ratio = 4 * self.num_embeddings * self.embedding_dim / self.nbytes
        return (
            f"{type(self).__name__}({self.num_embeddings} x {self.embedding_dim}, "
            f"{self.nbytes:,} bytes, {ratio:.1f}x)"
        )


def array_module(array: Array) -> Any:
    """NumPy or CuPy, whichever made the array."""
    if isinstance(array, np.ndarray):
        return np
    from survey_code.gpu import load_cupy

    return load_cupy()


def as_numpy(ids: Array) -> np.ndarray:
    """Ids as a NumPy array; an empty list is an empty integer array."""
    if hasattr(ids, "__cuda_array_interface__"):
        raise TypeError(
            "ids are on a GPU but the layout is not: call layout.to_gpu() "
            "or move the ids to the CPU"
        )
    array = np.asarray(ids)
    if array.size == 0 and isinstance(ids, list | tuple):
        array = array.astype(np.int64)
    return array


def as_finite_table(weight: Array, name: str = "weight") -> np.ndarray:
    """A 2-D float32 table without NaN or infinity, or one clear ValueError."""
    try:
        if hasattr(weight, "detach"):  # a torch tensor, perhaps on a GPU
            weight = weight.detach().cpu()
            # NumPy has no bfloat16.
            weight = weight.float() if weight.is_floating_point() else weight
            weight = weight.numpy()
        given = np.asarray(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if given.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be an array of numbers, got {given.dtype}")
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(
            f"{name} must be 2-D with at least one row and one column, "
            f"got shape {given.shape}"
        )
    with np.errstate(over="ignore"):  # infinity is reported below
        table = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise ValueError(
            f"{name} must be finite in float32: row {row} holds NaN or infinity"
        )
    return table


def check_offsets(ids: Array, offsets: Array | None, xp: Any) -> Array:
    """Bag borders, shape (bags + 1,): the offsets and the number of ids."""
    if offsets is None:
        if ids.ndim != 2:
            raise ValueError(
                f"without offsets, ids must have shape (bags, length), got {ids.shape}"
            )
        return xp.arange(ids.shape[0] + 1, dtype=np.int64) * ids.shape[1]
    if ids.ndim != 1:
        raise ValueError(f"with offsets, ids must have one axis, got shape {ids.shape}")
    offsets = xp.asarray(offsets)
    if offsets.ndim != 1 or (offsets.size and offsets.dtype.kind not in "iu"):
        raise ValueError(
            f"offsets must be integers of shape (bags,), got dtype {offsets.dtype} "
            f"and shape {offsets.shape}"
        )
    starts = xp.concatenate(
        [offsets.astype(np.int64), xp.asarray([ids.size], dtype=np.int64)]
    )
    if int(starts[0]) != 0 or bool((xp.diff(starts) < 0).any()):
        raise ValueError(
            "offsets must start at 0, never fall, and not exceed the number of "
            f"ids ({ids.size}), got {offsets[:8].tolist()}"
        )
    return starts


def check_weights(ids: Array, weights: Array | None, mode: str, xp: Any) -> Array:
    """The per-sample weights as float32, or None."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if weights is None:
        return None
    if mode != "sum":
        raise ValueError(f"per_sample_weights need mode='sum', got mode={mode!r}")
    if hasattr(weights, "detach"):  # a tensor that requires a gradient is no array
        weights = weights.detach()
    weights = xp.asarray(weights)
    if weights.shape != ids.shape or weights.dtype.kind not in "fiu":
        raise ValueError(
            f"per_sample_weights must be numbers of the ids' shape {ids.shape}, "
            f"got dtype {weights.dtype} and shape {weights.shape}"
        )
    # Kernels read them by their address: side by side, whatever view was given.
    return xp.ascontiguousarray(weights.astype(np.float32, copy=False))


def pool_rows(rows: Array, starts: Array, mode: str, xp: Any) -> Array:
    """Sum, mean or maximum of rows[starts[b]:starts[b+1]] for each bag b."""
    counts = xp.diff(starts)
    pooled = xp.zeros((len(counts), rows.shape[1]), dtype=np.float32)
    filled = xp.flatnonzero(counts)
    if len(filled) and xp is np:
        # reduceat cannot express an empty bag: reduce the others only.
        reduce = np.maximum if mode == "max" else np.add
        pooled[filled] = reduce.reduceat(rows, starts[:-1][filled], axis=0)
    elif len(filled):
        bags = xp.repeat(xp.arange(len(counts)), [int(c) for c in counts.tolist()])
        if mode == "max":
            pooled[filled] = -np.inf
            xp.maximum.at(pooled, bags, rows)
        else:
            xp.add.at(pooled, bags, rows)
    if mode == "mean":
        pooled /= xp.maximum(counts, 1).astype(np.float32)[:, None]
    return pooled
