"""Starting the kernels of look-ups and bags, whatever format the rows have.

Memory, streams and products are torch's, also where ids come from CuPy: a call waits
for nothing, and may be recorded into one of torch's CUDA graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from survey_code.kernels.bags import (
    check_bags,
    check_end,
    check_mode,
    make_array,
    raise_offsets,
    raise_weights,
    refuse_bfloat16,
    refuse_check,
)
from survey_code.kernels.cuda import MODES, Check, GpuArray, Shaped, load_cupy
from survey_code.kernels.cuda.generate import borrow_once, generate_rows, make_table
from survey_code.kernels.cuda.load import ID_TYPES, load_kernel
from survey_code.kernels.cuda.start import Starter
from survey_code.kernels.formats import (
    DenseFormat,
    Format,
    GeneratorFormat,
    PieceFormat,
    TurnedFormat,
)

SHARING = 64  # threads of a block that share rows
ENOUGH_GROUPS = 8192  # of threads that share rows
C_NAMES = {
    torch.int32: "int",
    torch.int64: "long long",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
WRITTEN = torch.float32, torch.float16, torch.bfloat16
NATIVE = torch.int64, torch.int32
INTEGERS_OF_TORCH = {
    *NATIVE, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64,
}  # fmt: skip
# Types of NumPy that torch lacks; the first is of the package ml_dtypes.
WIDENED = "bfloat16", np.dtype(np.longdouble).name
BAD_ID, BAD_OFFSET, BAD_END = 1, 2, 4  # as in reading.cuh


# -- what layouts call ---------------------------------------------------------


@dataclass(eq=False)
class Launcher:
    """What reads the rows of one layout on a GPU.

    Parameters
    ----------
    format : Format
        Of arrays of CuPy, which it keeps.
    place : torch.device
        Where these are.
    """

    format: Format
    place: torch.device
    # What late calls report to; calls that ask for nothing; and calls that wait, each
    # while it does.
    late: Notice = field(default_factory=lambda: Notice())
    unread: Notice = field(default_factory=lambda: Notice())
    free: list[Notice] = field(default_factory=list)
    # By what decides which kernel a call needs; None where it needs several.
    starters: dict[object, Starter | None] = field(default_factory=dict)
    index: int = field(init=False)  # of the GPU

    def __post_init__(self) -> None:
        self.index = -1 if self.place.index is None else self.place.index

    @classmethod
    def of(cls, format: Format | None, array: Shaped) -> Launcher | None:
        """A launcher beside one of the layout's arrays; None where no kernel reads."""
        if format is None:
            return None
        return cls(format, torch.from_dlpack(array).device)

    def read(
        self, ids: object, check: Check = True, kind: torch.dtype = torch.float32
    ) -> Any:
        """One row per id; see `survey_code.layouts.Layout.lookup`.

        Returns
        -------
        CuPy array or tensor, as the ids are, shape (*ids.shape, dim)
            The row of a bad id is 0.
        """
        own, format = self.as_ids(ids), self.format
        notice = self.take_notice(check)
        made = kind if kind in WRITTEN else torch.float32
        out = torch.empty((*own.shape, format.dim), dtype=made, device=self.place)
        if own.numel():
            self.start(Call(own, out, notice.address))
        if check is True:
            self.wait(notice, own)
        return give_back(ids, out if made is kind else out.to(kind))

    def pool(
        self,
        ids: object,
        offsets: object = None,
        weights: object = None,
        mode: str = "sum",
        check: Check = True,
        padding: int | None = None,
        last: bool = False,
        kind: torch.dtype = torch.float32,
    ) -> Any:
        """One pooled row per bag; see `survey_code.layouts.Layout.bag`."""
        own, format = self.as_ids(ids), self.format
        check_mode(mode, weights is not None)
        factors = None if weights is None else self.as_factors(own, weights)
        starts = None if offsets is None else self.as_starts(offsets)
        many = None if starts is None else starts.numel()
        if own.ndim != 1 or not many:
            check_bags(own.shape, many, last)
        bags, many = own.shape if many is None else (many - last, many)
        notice = self.take_notice(check)
        made = kind if kind in WRITTEN else torch.float32
        out = torch.empty((bags, format.dim), dtype=made, device=self.place)
        if bags:
            left_out = -1 if padding is None else padding
            how = (notice.address, starts, many, bags, factors, mode, left_out)
            self.start(Call(own, out, *how))
        elif starts is not None and last:
            check_end(starts, own.numel())
        if check is True:
            self.wait(notice, own, starts)
        return give_back(ids, out if made is kind else out.to(kind))

    def start(self, call: Call) -> None:
        """Start the kernels of a call, chosen at the first of its kind."""
        starter = self.starters.get(key := call.key())
        if starter is not None:
            start_once(starter, call)
        else:
            begin = start_pool if call.bags else start_read
            self.starters[key] = begin(self.format, call)

    def as_ids(self, ids: object) -> Tensor:
        """Ids as a contiguous tensor of int32 or int64, beside the layout."""
        if isinstance(ids, Tensor) and ids.get_device() == self.index:
            own = ids
        else:
            own = borrow_tensor(ids)
            if own.device != self.place:
                raise ValueError(
                    f"ids are on {own.device}, but the layout is on {self.place}"
                )
        if own.dtype not in NATIVE:
            if own.dtype not in INTEGERS_OF_TORCH:
                kind = spell_type(own.dtype)
                raise ValueError(f"ids must be integers, got dtype {kind}")
            own = own.to(torch.int64)
        if own.numel() >= 2**31:
            raise ValueError(f"at most 2**31 - 1 ids a call, got {own.numel()}")
        return lay_bare(own)

    def as_starts(self, offsets: object) -> Tensor:
        """Offsets beside the layout, contiguous, int32 or int64, in any order."""
        own = self.bring("offsets", offsets)
        if own.ndim != 1 or (own.dtype not in INTEGERS_OF_TORCH and own.numel()):
            raise_offsets(spell_type(own.dtype), tuple(own.shape))
        if own.dtype not in NATIVE:
            own = own.to(torch.int64)
        return lay_bare(own)

    def as_factors(self, ids: Tensor, weights: object) -> Tensor:
        """The per-sample weights as contiguous float32."""
        own = self.bring("per_sample_weights", weights).detach()
        number = own.dtype.is_floating_point or own.dtype in INTEGERS_OF_TORCH
        if own.shape != ids.shape or not number:
            raise_weights(tuple(ids.shape), spell_type(own.dtype), tuple(own.shape))
        return lay_bare(own.to(torch.float32))

    def bring(self, name: str, given: object) -> Tensor:
        """A tensor of anything that can be one, beside the layout."""
        if isinstance(given, Tensor):
            return given if given.get_device() == self.index else given.to(self.place)
        if isinstance(given, load_cupy().ndarray):
            return torch.from_dlpack(given)
        held = np.array(make_array(name, given, np))  # a copy, which torch may write to
        if held.dtype.name in WIDENED:
            held = held.astype(np.float32)
        if held.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be numbers, got dtype {held.dtype}")
        # Torch knows no other order of bytes.
        held = held.astype(held.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(held).to(self.place)

    def take_notice(self, check: Check) -> Notice:
        """Where the kernel of a call reports to; raise what late calls reported."""
        if check is True:
            try:
                return self.free.pop()
            except IndexError:  # all are in use, the last one since a moment ago
                return Notice()
        if check == "late":
            if self.late.word[0]:
                self.late.raise_for(self.format)
            return self.late
        refuse_check(check)
        return self.unread

    def wait(self, notice: Notice, ids: Tensor, starts: Tensor | None = None) -> None:
        """Wait for a call's kernels, and raise what they reported."""
        if self.place.type == "cuda":
            torch.cuda.current_stream(self.place).synchronize()
        try:
            if notice.word[0]:
                notice.raise_for(self.format, ids, starts)
        finally:
            self.free.append(notice)

    def wait_late(self) -> None:
        """Raise what calls with ``check="late"`` report, once their kernels end."""
        if self.place.type == "cuda":
            torch.cuda.synchronize(self.place)
        if self.late.word[0]:
            self.late.raise_for(self.format)


# -- what kernels report ---------------------------------------------------------


class Notice:
    """A word in the processor's memory, which a kernel writes to where it must."""

    def __init__(self) -> None:
        pinned = torch.cuda.is_available()
        self.words = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
        self.address = self.words.data_ptr()
        held: Any = self.words.numpy()
        self.word = memoryview(held)

    def raise_for(
        self, format: Format, ids: Tensor | None = None, starts: Tensor | None = None
    ) -> None:
        """Raise what was reported, of an earlier call where its ids are not given."""
        found, self.word[0] = self.word[0], 0
        limit = f"for a table of {format.rows} rows (ids are 0 to {format.rows - 1})"
        whose = "" if ids is not None else "an earlier call: "
        if found & BAD_ID and ids is not None:
            low, high = int(ids.min()), int(ids.max())
            wrong = low if low < 0 else high
            raise IndexError(f"id {wrong} is out of range {limit}")
        if found & BAD_ID:
            raise IndexError(f"{whose}an id is out of range {limit}")
        size = "" if ids is None else f" ({ids.numel()})"
        if found & BAD_OFFSET or starts is None:
            raise ValueError(
                f"{whose}offsets must start at 0, never fall, and not exceed the "
                f"number of ids{size}; with include_last_offset=True the last must be "
                "that number"
            )
        check_end(starts, int(ids.numel()) if ids is not None else 0)


# -- one start for each kind of format -----------------------------------------


class Call(NamedTuple):
    """What a kernel is called with, beside a format.

    Parameters
    ----------
    ids : Tensor of int32 or int64, contiguous
    out : Tensor of float32, float16 or bfloat16, shape (ids or bags, dim)
    flag : int
        Address of the word where kernels report what is wrong.
    offsets : Tensor of int32 or int64, contiguous, optional
        Of bags; without them, bags have equal lengths.
    many : int
        How many offsets there are, or the length of each bag.
    bags : int
    weights : Tensor of float32, contiguous, as many as ids, optional
    mode : {"sum", "mean", "max"}
    padding : int
        The id that no bag reads; -1 for none.
    """

    ids: Tensor
    out: Tensor
    flag: int
    offsets: Tensor | None = None
    many: int = 0
    bags: int = 0
    weights: Tensor | None = None
    mode: str = "sum"
    padding: int = -1

    def told_read(self) -> tuple[int, int, int, int]:
        """What a kernel of look-ups is told."""
        ids = self.ids
        return ids.data_ptr(), ids.numel(), self.out.data_ptr(), self.flag

    def told_pool(self) -> tuple[int, ...]:
        """What a kernel of bags is told."""
        ids, out, flag, offsets, many, bags, weights, mode, padding = self
        return (
            ids.data_ptr(), ids.numel(), 0 if offsets is None else offsets.data_ptr(),
            many, bags, 0 if weights is None else weights.data_ptr(), padding,
            out.data_ptr(), flag, MODES.index(mode),
        )  # fmt: skip

    def types(self) -> str:
        """Of ids, offsets and results, in C++."""
        kinds = [self.ids.dtype, self.out.dtype]
        if self.bags:
            offsets = self.offsets
            kinds[1:1] = [torch.int64 if offsets is None else offsets.dtype]
        return ", ".join(C_NAMES[kind] for kind in kinds)

    @property
    def is_short(self) -> bool:
        """Whether bags have fewer than four ids on average."""
        return self.ids.numel() < 4 * self.bags

    def key(self) -> tuple[object, ...]:
        """What decides which kernel a format needs."""
        ids, out, _, offsets, _, bags, _, mode, _ = self
        if not bags:
            return ids.dtype, out.dtype
        kind = None if offsets is None else offsets.dtype
        return ids.dtype, out.dtype, kind, mode, self.is_short


def start_once(starter: Starter, call: Call) -> None:
    """Start the one kernel that a call takes."""
    count = call.ids.numel()
    if call.bags:
        starter(call.bags, *call.told_pool())
    elif starter.shares:
        # Threads that share rows find up to `lanes` of them at once; fewer where there
        # would be too few groups to keep the whole GPU busy.
        each = min(max(count // ENOUGH_GROUPS, 1), starter.block[0])
        starter(-(-count // each), *call.told_read(), each)
    else:
        starter(-(-count // 4), *call.told_read())


@singledispatch
def start_read(format: Format, call: Call) -> Starter | None:
    """Start the kernel of a look-up; there is at least one id.

    Returns
    -------
    Starter or None
        For other calls of this kind; None where it took more than one kernel.
    """
    starter = compose(format, "read_composed", call, format.single)
    start_once(starter, call)
    return starter


@singledispatch
def start_pool(format: Format, call: Call) -> Starter | None:
    """Start the kernel of a bag, as `start_read`; there is at least one."""
    # For short bags, fewer registers and so more threads at once.
    starter = compose(format, "pool_composed", call, "1" if call.is_short else "")
    start_once(starter, call)
    return starter


@start_read.register
def _(format: PieceFormat, call: Call) -> Starter:
    starter = choose_piece(format, "read_rows", "single", call)
    start_once(starter, call)
    return starter


@start_pool.register
def _(format: PieceFormat, call: Call) -> Starter:
    name = "max_rows" if call.mode == "max" else "pool_rows"
    use = "short" if call.is_short else "pooled"
    starter = choose_piece(format, name, use, call)
    start_once(starter, call)
    return starter


@start_read.register
def _(format: GeneratorFormat, call: Call) -> None:
    table, places = generate_rows(format, call.ids.view(-1), call.flag)
    start_read(hold_rows(table), put_apart(call, places, table, format.rows))


@start_pool.register
def _(format: GeneratorFormat, call: Call) -> None:
    table, places = generate_rows(format, call.ids.view(-1), call.flag)
    start_pool(hold_rows(table), put_apart(call, places, table, format.rows))


@start_read.register
def _(format: TurnedFormat, call: Call) -> None:
    rows = call.out.new_empty((call.ids.numel(), format.width), dtype=torch.float32)
    start_read(format.part, call._replace(out=rows))
    call.out.view(-1, format.dim).copy_(rows @ borrow_once(format, format.matrix))


@start_pool.register
def _(format: TurnedFormat, call: Call) -> None:
    if call.mode != "max":
        # A sum of turned rows is the turned sum: one product for a bag.
        rows = call.out.new_empty((call.bags, format.width), dtype=torch.float32)
        start_pool(format.part, call._replace(out=rows))
        call.out.copy_(rows @ borrow_once(format, format.matrix))
        return
    # The largest entry is another one once the rows are turned.
    count = call.ids.numel()
    table = make_table(count, format.dim, call.ids.device)
    if count:
        start_read(format, Call(call.ids, table[:count], call.flag))
    places = torch.arange(count, device=table.device)
    start_pool(hold_rows(table), put_apart(call, places, table, format.rows))


def put_apart(call: Call, places: Tensor, table: Tensor, rows: int) -> Call:
    """The same call for places in a table, whose last row, of zeros that no bag reads,
    stands for padding and for ids out of range, which were reported.
    """
    spare = len(table) - 1
    ids = call.ids.view(-1).long()  # a padding may be beyond int32
    kept = (ids >= 0) & (ids < rows)
    if call.padding >= 0:
        kept &= ids != call.padding
    places = torch.where(kept, places, spare)
    return call._replace(ids=places.view(call.ids.shape), padding=spare)


def hold_rows(table: Tensor) -> DenseFormat:
    """Rows of `make_table`, until the kernels that read them have ended."""
    rows, dim = table.shape
    address: Any = table.data_ptr()
    return DenseFormat(rows, dim, address, 4 * table.stride(0), "float32")


# -- what the starts share -----------------------------------------------------


def compose(format: Format, name: str, call: Call, ahead: str = "") -> Starter:
    """A kernel of rows that several arrays make together."""
    entries = format.unit()
    form = format.form(entries)
    expression = f"{name}<{form}, {call.types()}, {ahead or f'{form}::AHEAD'}>"
    return make_starter("composed.cu", expression, format, entries, call)


def choose_piece(format: PieceFormat, name: str, use: str, call: Call) -> Starter:
    """A kernel of rows of one table."""
    entries, ahead = format.shape(use)
    while entries > format.least and entries // 2 >= format.dim:
        entries //= 2  # a short row needs no more
    expression = f"{name}<{format.piece(entries, ahead)}, {call.types()}>"
    return make_starter("pieces.cu", expression, format, entries, call)


def make_starter(
    file: str, expression: str, format: Format, entries: int, call: Call
) -> Starter:
    """One kernel with what it is told about a format; kept, as parts of others."""
    place = call.ids.device
    found: Starter | None = format.kept.get(expression)
    if found is None:
        kernel = load_kernel(file, expression, format.source)
        fields = format.arguments["numbers"].tolist()
        shares = file == "composed.cu" and not call.bags
        kinds = "9qi" if call.bags else "4qi" if shares else "4q"
        block = share_threads(format.dim, entries)
        sizes = format.rows, format.dim
        found = Starter(kernel, fields, sizes, kinds, block, place, shares)
        format.kept[expression] = found
    return found


def share_threads(dim: int, entries: int) -> tuple[int, int]:
    """Threads that share a row (a power of two, at most a warp), rows a block."""
    lanes = 1
    while lanes < 32 and lanes * entries < dim:
        lanes *= 2
    return lanes, SHARING // lanes


# -- what is given ---------------------------------------------------------------


def borrow_tensor(ids: object) -> Tensor:
    """A tensor over the memory of CuPy's array; a CUDA tensor as it is."""
    if isinstance(ids, Tensor) and ids.is_cuda:
        return ids
    if isinstance(ids, load_cupy().ndarray):
        return torch.from_dlpack(ids)
    raise TypeError(
        f"the layout is on a GPU, so ids must be a CuPy array or a CUDA tensor, "
        f"got {type(ids).__module__}.{type(ids).__name__}"
    )


def lay_bare(tensor: Tensor) -> Tensor:
    """A tensor whose memory is what it holds: side by side, and no sign still to be
    turned.  Kernels read it by its address.
    """
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def give_back(ids: object, found: Tensor) -> Any:
    """What was read: a tensor where the ids are one, otherwise CuPy's array."""
    if isinstance(ids, Tensor):
        return found
    refuse_bfloat16(spell_type(found.dtype))
    return load_cupy().from_dlpack(found)


def spell_type(kind: torch.dtype) -> str:
    """As NumPy calls it."""
    return str(kind).removeprefix("torch.")


def gather_ceiling(table: GpuArray, ids: GpuArray) -> None:
    """Read the rows of bags and do nothing with them: what no kernel can beat.

    Parameters
    ----------
    table : CuPy array of uint8, shape (rows, stride), stride a multiple of 16
    ids : CuPy array of int32 or int64, shape (bags, length)
    """
    cupy = load_cupy()
    bags, length = ids.shape
    words = table.shape[1] // 16
    lanes, rows = share_threads(words, 1)
    kernel = load_kernel("gather.cu", f"gather_rows<{ID_TYPES[str(ids.dtype)]}>")
    out = cupy.empty(bags, dtype=np.uint32)
    kernel(
        (-(-bags // rows),),
        (lanes, rows),
        (table, np.int32(words), ids, np.int64(bags), np.int32(length), out),
    )
