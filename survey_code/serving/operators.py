"""Look-ups and bags as operators of torch, which its compilers take as they are.

An operator is given the arrays of a layout as tensors, and a text that says what they
are.  So they may be a module's buffers, or the constants of an exported program that
another process runs: it only has to import this module.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from survey_code.kernels.cuda import is_cupys, load_cupy
from survey_code.layouts import rebuild
from survey_code.layouts.files import check_blueprint
from survey_code.layouts.layout import lay_out, place_layout

if TYPE_CHECKING:
    from survey_code.layouts.layout import Layout, StoredArray

# Layouts that are kept ready, of tensors that were passed before.
MOST_HELD = 1024
# Compilers know signed integers better than unsigned ones of more than a byte.
SIGNED = {np.dtype(f"u{size}"): np.dtype(f"i{size}") for size in (2, 4, 8)}


def describe_tensors(layout: Layout) -> str:
    """What `as_tensors` of a layout are: its blueprint, names and types, as JSON; the
    columns of padded rows; and the shapes of arrays with nothing in them, which are no
    tensors: torch writes none.
    """
    kinds = [
        [
            name, array.dtype.str, None if array.size else list(array.shape),
            None if find_whole(array) is array else array.shape[1],
        ]
        for name, array in sort_arrays(layout)
    ]  # fmt: skip
    contents = {"blueprint": layout.blueprint(), "arrays": kinds}
    return json.dumps(contents, sort_keys=True)


def as_tensors(layout: Layout) -> list[Tensor]:
    """The stored arrays, in the order of their names; they share its memory where
    their numbers lie side by side.  Rows that a GPU pads come with their padding.
    """
    whole = layout if layout.on_gpu else lay_out(layout)
    arrays = [array for _, array in sort_arrays(whole) if array.size]
    return [as_shared(find_whole(array)) for array in arrays]


def find_whole(array: StoredArray) -> StoredArray:
    """The padded table of which an array on a GPU is the first columns; torch's
    exporter writes no views.  Other arrays as they are.
    """
    if not is_cupys(array) or array.ndim != 2 or not array.size:
        return array
    base: StoredArray | None = array.base
    padded = array.shape[0], array.strides[0] // array.itemsize
    same = base is not None and base.shape == padded and base.dtype == array.dtype
    return base if same and base is not None and padded != array.shape else array


def sort_arrays(layout: Layout) -> list[tuple[str, StoredArray]]:
    """The arrays in the order of their names."""
    return sorted(layout.arrays().items())


def as_shared(array: StoredArray) -> Tensor:
    """A tensor over an array's memory, of NumPy or CuPy, which nobody writes to."""
    signed: Any = array.view(SIGNED.get(array.dtype, array.dtype))
    if is_cupys(array):
        return torch.from_dlpack(signed)
    if not signed.flags.writeable:
        # A mapped file is not copied; torch would warn of what nobody does.
        held = signed.__array_interface__
        signed = np.asarray(Lent({**held, "data": (held["data"][0], False)}, array))
    return torch.from_numpy(signed)


@dataclass
class Lent:
    """Memory as NumPy sees it, and whose it is."""

    __array_interface__: dict[str, Any]
    owner: object


@dataclass
class Held:
    """A layout over the memory of tensors, as long as these are there."""

    layout: Layout
    storages: list[StorageWeakRef]

    def is_there(self) -> bool:
        """Whether all memory is still the tensors' own."""
        return not any(storage.expired() for storage in self.storages)


_HELD: OrderedDict[tuple[object, ...], Held] = OrderedDict()


def hold_layout(tensors: list[Tensor], description: str) -> Layout:
    """The layout that tensors are, made at the first call and kept ready.

    It borrows their memory, and is forgotten with them.

    Raises
    ------
    ValueError
        If the tensors are not what the description says.
    """
    key = name_held(tensors, description)
    held = _HELD.get(key)
    if held is None or not held.is_there():
        layout = rebuild_layout(tensors, description)
        storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]
        held = _HELD[key] = Held(layout, storages)
        for old in [k for k, other in _HELD.items() if not other.is_there()]:
            del _HELD[old]
        while len(_HELD) > MOST_HELD:
            _HELD.popitem(last=False)
    return held.layout


def name_held(tensors: list[Tensor], description: str) -> tuple[object, ...]:
    """What a layout over the memory of tensors is kept by."""
    return description, *(tensor.data_ptr() for tensor in tensors)


def raise_late(tensors: list[Tensor], description: str) -> None:
    """Raise what operators were given of these tensors, once their kernels end."""
    held = _HELD.get(name_held(tensors, description))
    if held is not None and held.is_there():
        held.layout.raise_late()


def rebuild_layout(tensors: list[Tensor], description: str) -> Layout:
    """A layout over the memory of tensors."""
    contents = json.loads(description)
    wanted = sum(shape is None for _, _, shape, _ in contents["arrays"])
    if wanted != len(tensors):
        raise ValueError(f"{wanted} arrays are described, got {len(tensors)}")
    place: Any = load_cupy() if tensors and tensors[0].is_cuda else np
    waiting, arrays = iter(tensors), {}
    for name, kind, shape, width in contents["arrays"]:
        if shape is not None:
            arrays[name] = place.empty(shape, dtype=kind)
            continue
        held = borrow(next(waiting), np.dtype(kind))
        arrays[name] = held if width is None else held[:, :width]
    layout = rebuild(check_blueprint(contents["blueprint"]), arrays)
    if layout.on_gpu:
        # Rows lie as kernels want them, unless a compiler has laid them otherwise.
        layout = place_layout(layout)
    layout.compiles = True
    return layout


def borrow(tensor: Tensor, kind: np.dtype) -> np.ndarray:
    """An array over a tensor's memory, which it does not keep."""
    shape = tuple(tensor.shape)
    strides = tuple(step * kind.itemsize for step in tensor.stride())
    address = tensor.data_ptr()
    if tensor.is_cuda:
        cupy = load_cupy()
        nbytes = kind.itemsize + sum((n - 1) * s for n, s in zip(shape, strides))
        memory = cupy.cuda.UnownedMemory(address, nbytes, None, tensor.device.index)
        pointer = cupy.cuda.MemoryPointer(memory, 0)
        found: np.ndarray = cupy.ndarray(shape, kind, pointer, strides)
        return found
    told = {"shape": shape, "typestr": kind.str, "strides": strides, "version": 3}
    return np.asarray(Lent({**told, "data": (address, False)}, None))


@torch.library.custom_op("survey_code::lookup", mutates_args=())
def lookup(ids: Tensor, arrays: list[Tensor], description: str) -> Tensor:
    """Rows of a layout; see `survey_code.layouts.Layout.lookup`.

    Parameters
    ----------
    ids : Tensor of int32 or int64, any shape
    arrays : list of Tensor
        From `as_tensors`, on the ids' device.
    description : str
        From `describe_tensors`.

    Returns
    -------
    Tensor of float32, shape (*ids.shape, embedding_dim)
    """
    return hold_layout(arrays, description).lookup(ids.contiguous(), check="late")


@torch.library.custom_op("survey_code::bag", mutates_args=())
def bag(
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    arrays: list[Tensor],
    description: str,
    mode: str,
    padding_idx: int | None,
    include_last_offset: bool,
) -> Tensor:
    """Pooled rows of a layout; see `survey_code.layouts.Layout.bag`.

    Returns
    -------
    Tensor of float32, shape (bags, embedding_dim)
    """
    layout = hold_layout(arrays, description)
    how = (mode, padding_idx, include_last_offset)
    ids = ids.contiguous()
    return layout.bag(ids, offsets, per_sample_weights, *how, check="late")


@lookup.register_fake
def shape_lookup(ids: Tensor, arrays: list[Tensor], description: str) -> Tensor:
    """What compilers ask of a look-up: shape and type."""
    return ids.new_empty((*ids.shape, read_dim(description)), dtype=torch.float32)


@bag.register_fake
def shape_bag(
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    arrays: list[Tensor],
    description: str,
    mode: str,
    padding_idx: int | None,
    include_last_offset: bool,
) -> Tensor:
    """The same of a bag."""
    bags = ids.shape[0] if offsets is None else offsets.shape[0] - include_last_offset
    return ids.new_empty((bags, read_dim(description)), dtype=torch.float32)


@lookup.register_vmap
def map_lookup(
    info: object,
    in_dims: tuple[int, list[int | None], None],
    ids: Tensor,
    arrays: list[Tensor],
    description: str,
) -> tuple[Tensor, int]:
    """A look-up of ids along one more axis, which is one of all of them."""
    if any(dim is not None for dim in in_dims[1]):
        raise ValueError("a layout's arrays cannot be mapped over, only ids can")
    return lookup(ids.movedim(in_dims[0], 0), arrays, description), 0


def read_dim(description: str) -> int:
    """Length of a row."""
    return int(json.loads(description)["blueprint"]["shape"]["embedding_dim"])
