"""The tiered layout: some rows in full precision, the others in few bits.

Every row stands in one tier.  The last tier needs no list of its ids: these are the
ids that no other tier names, in their order, so that the row of id i is i less the
number of named ids below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from survey_code.bits import mark_ids
from survey_code.layouts.dense import DenseLayout
from survey_code.layouts.layout import IdArray, Layout, RowArray, array_module, cut
from survey_code.layouts.rowwise import RowwiseLayout

if TYPE_CHECKING:
    from survey_code.kernels.cuda.rows import FusedRows

# The tiers' arrays, and the bits of their codes (0: no codes, a dense table).
TIERS = {"values": 0, "rows8": 8, "rows4": 4, "rows2": 2}


class TieredLayout(Layout):
    """One dense and up to three row-wise tables, and who stands in which.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    keys : ndarray of int32, shape (rows outside the last tier,), optional
        Ids of each tier but the last, tier after tier, rising within each.
    values : ndarray of float32, float16 or uint16, shape (rows, dim), optional
        As in `DenseLayout`.
    rows8, rows4, rows2 : ndarray of uint8, optional
        As in `RowwiseLayout`, a scale and a bias in each row.

    Raises
    ------
    ValueError
        If the tiers do not hold each id once.
    """

    name: ClassVar[str] = "tiered"
    array_names: ClassVar[tuple[str, ...]] = ("keys", *TIERS)

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        keys: np.ndarray | None = None,
        **tiers: np.ndarray,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        unknown = sorted(set(tiers) - set(TIERS))
        if unknown:
            raise ValueError(f"unknown tier {unknown[0]!r}; tiers: {list(TIERS)}")
        self.keys = None if keys is None else np.asarray(keys)
        for name in TIERS:
            setattr(self, name, tiers.get(name))
        self.validate()

    @classmethod
    def from_parts(
        cls, embedding_dim: int, parts: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> TieredLayout:
        """Put tiers together; those without rows are left out.

        Parameters
        ----------
        embedding_dim : int
        parts : dict
            For ``"values"``, ``"rows8"`` and so on the ids, int64 and rising, and
            the array of their rows.
        """
        filled = {name: parts[name] for name in TIERS if len(parts.get(name, ([],))[0])}
        keys = [ids.astype(np.int32) for ids, _ in filled.values()]
        rows = sum(len(ids) for ids in keys)
        named = np.concatenate(keys[:-1]) if len(keys) > 1 else None
        tiers = {name: array for name, (_, array) in filled.items()}
        return cls(rows, embedding_dim, named, **tiers)

    def tiers(self) -> list[Layout]:
        """The tables in the order of `TIERS`."""
        found: list[Layout] = []
        for name, bits in TIERS.items():
            array = getattr(self, name)
            if array is None:
                continue
            shape = {"num_embeddings": len(array), "embedding_dim": self.embedding_dim}
            if bits:
                shape["bits"] = bits
                found.append(RowwiseLayout.from_file(shape, {"rows": array}))
            else:
                found.append(DenseLayout.from_file(shape, {"values": array}))
        return found

    def tier_keys(self) -> list[np.ndarray]:
        """Ids of each tier but the last."""
        if self.keys is None:
            return []
        return cut(self.keys, [tier.num_embeddings for tier in self.tiers()[:-1]])

    def validate(self) -> None:
        """Raise ValueError if tiers and keys contradict each other."""
        sizes = [tier.num_embeddings for tier in self.tiers()]
        if sum(sizes) != self.num_embeddings:
            raise ValueError(
                f"the tiers hold {sizes} rows, which do not add up to "
                f"{self.num_embeddings}"
            )
        if len(sizes) == 1:
            if self.keys is not None:
                raise ValueError("a single tier needs no keys")
            return
        keys = self.keys
        if keys is None or keys.dtype != np.int32 or keys.shape != (sum(sizes[:-1]),):
            raise ValueError(f"keys must be int32 of shape {(sum(sizes[:-1]),)}")
        for some in self.tier_keys():
            if bool((some[1:] <= some[:-1]).any()):
                raise ValueError("keys must rise within each tier")
        xp = array_module(keys)
        ordered = xp.sort(keys)
        if (
            int(ordered[0]) < 0
            or int(ordered[-1]) >= self.num_embeddings
            or bool((ordered[1:] == ordered[:-1]).any())
        ):
            raise ValueError("keys must be different ids of the table")

    def fuse(self) -> FusedRows:
        """The tiers as they are, and a bit for each id that says where it stands."""
        from survey_code.kernels.cuda.composed import place_tiered

        tiers = [(getattr(self, name), bits) for name, bits in TIERS.items()]
        return place_tiered(
            (self.num_embeddings, self.embedding_dim),
            [(array, bits) for array, bits in tiers if array is not None],
            [mark_ids(keys, self.num_embeddings) for keys in self.tier_keys()],
        )

    def read_rows(self, ids: IdArray) -> RowArray:
        """Search each tier's keys; what is found nowhere is in the last tier."""
        xp = array_module(ids)
        rows = xp.empty((len(ids), self.embedding_dim), dtype=np.float32)
        below = xp.zeros(len(ids), dtype=np.int64)
        left = xp.ones(len(ids), dtype=bool)
        *named, last = self.tiers()
        for tier, keys in zip(named, self.tier_keys()):
            places = xp.searchsorted(keys, ids.astype(np.int32))
            found = keys[xp.minimum(places, len(keys) - 1)] == ids
            rows[found] = tier.read_rows(places[found])
            below += places
            left &= ~found
        rows[left] = last.read_rows((ids - below)[left])
        return rows
