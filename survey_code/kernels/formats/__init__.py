"""What kernels are told about layouts: a description of each, on both sides alike.

The headers beside this file read rows, on a GPU and on a processor.

A `Format` is a small dataclass.  Those of its attributes that are marked `Told` are
what a kernel reads: addresses of arrays, numbers, digits, and formats again where a
layout holds layouts.  From the class the C++ struct is made that the kernel takes by
value (`struct HashedFields` from `HashedFormat`), and from an instance the struct's
contents, so that no place in it is counted by hand.  The C++ class that reads a row
has the format's name, and stands in the header that the format names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from types import ModuleType
from typing import Annotated, Any, ClassVar, Protocol, get_type_hints, runtime_checkable

import numpy as np

from survey_code.kernels.cuda import Shaped, array_module, is_cupys
from survey_code.kernels.cuda.place import (
    address_of,
    pack_beside,
    pad_words,
    row_stride,
)

__all__ = ["Format", "address_of", "describe_all", "describe_rows"]

OPEN = 2**63 - 1  # ids of a layout that serves any
FEW_BLOCKS = 8  # of a row, that are found at once
FEW_TABLES = 2  # side by side, whose rows are found at once
FLOATS = {"float32": "float", "float16": "__half", "uint16": "__nv_bfloat16"}
INTEGERS = {"uint8": "unsigned char", "uint16": "unsigned short"}
# Entries that are read at once: on a GPU by a thread; on a processor up to eight
# vectors of them, as many as its registers hold.
GPU: tuple[int, ...] = (4, 2, 1)
PROCESSOR: tuple[int, ...] = tuple(range(64, 0, -1))
IDENTITIES = {"int32": "int", "int64": "long long"}
Shape = tuple[int, int]


# -- what is told ------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """Marks an attribute that the kernel reads.

    Parameters
    ----------
    kind : str
        Its type in C++; ``"format"`` for a format, whose struct stands in this one.
    count : str
        For a sequence its length, a number or the name of a template's argument.
    """

    kind: str = "long long"
    count: str = ""


Number = Annotated[int, Told()]
HashNumbers = Annotated[Sequence[int], Told(count="3")]
Address = Annotated[Shaped, Told()]
AddressOrNull = Annotated[Shaped | None, Told()]
Inner = Annotated["Format", Told("format")]
InnerOrNothing = Annotated["Format | None", Told("format")]


def told_fields(described: type[Any]) -> dict[str, Told]:
    """Those attributes of a description that the kernel reads, in their order."""
    hints = get_type_hints(described, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    named = [one.name for one in fields(described)]
    return {
        name: mark for name in named for mark in found[name] if isinstance(mark, Told)
    }


def emit_struct(described: type) -> str:
    """The struct of a description, in C++."""
    arguments, lines = [], []
    for name, how in told_fields(described).items():
        kind, count = how.kind, how.count
        if kind == "format":
            own = name.title().replace("_", "")
            arguments.append(f"class {own}")
            kind = f"typename {own}::Fields"
        if count.isalpha():
            arguments.append(f"int {count}")
        lines.append(f"  {kind} {name}{f'[{count}]' if count else ''};")
    head = f"template <{', '.join(arguments)}> " if arguments else ""
    name = described.__name__.replace("Format", "Fields")
    return "\n".join([f"{head}struct {name} {{", *lines, "};\n"])


def list_numbers(described: Any) -> list[int]:
    """What a struct contains: integers of 64 bits, and addresses of arrays."""
    numbers: list[int] = []
    for name, how in told_fields(type(described)).items():
        value = getattr(described, name)
        for item in value if how.count else [value]:
            numbers += list_told(item)
    return numbers


def list_told(value: Any) -> list[int]:
    """The integers that one thing is told by; nothing is told by 0."""
    if value is None:
        return [0]
    if isinstance(value, int | np.integer):
        return [(int(value) + 2**63) % 2**64 - 2**63]  # the same bits as an int64
    if hasattr(value, "dtype"):
        return [address_of(value)]
    return list_numbers(value)


def invert(number: int) -> int:
    """floor(2**64 / number), by which a kernel divides; the largest there is for 1."""
    return min(2**64 // int(number), 2**64 - 1)


@dataclass(eq=False)
class Digit:
    """How a digit is taken from an id, and the first row of the table it names."""

    first: Number
    second: Number
    addend: Number
    divisor: Number
    divisor_inverse: Number
    modulus: Number
    modulus_inverse: Number
    start: Number

    @classmethod
    def of(cls, row: Sequence[int], start: int = 0) -> Digit:
        """From a row of an index table: a hash's numbers, divisor and modulus."""
        first, second, addend, divisor, modulus = row
        inverses = invert(divisor), invert(modulus)
        return cls(
            first, second, addend, divisor, inverses[0], modulus, inverses[1], start
        )


NO_HASH = 0, 0, 0
NO_DIGIT = Digit(*NO_HASH, 1, 0, 0, 0, 0)


@dataclass(eq=False)
class Gram:
    """A stretch of an id's codes: its first bit, its bits, and its hash's digit."""

    begin: Number
    length: Number
    digit: Annotated[Digit, Told("Digit")]


@dataclass(eq=False)
class TrainCore:
    """A core of a tensor train, shape (rows, left / step, columns / step, right)."""

    values: Address
    rows: Number
    columns: Number
    left: Number
    right: Number
    step: Number


# -- formats -----------------------------------------------------------------------


@dataclass(eq=False)
class Format:
    """How a kernel finds and decodes the rows of a layout.

    Parameters
    ----------
    rows, dim : int
        Ids are below `rows`; a row has `dim` entries.
    """

    header: ClassVar[str]
    parts: ClassVar[tuple[type, ...]] = ()  # further structs that its own one holds
    composes: ClassVar[bool] = True  # whether other formats can hold it
    # Entries that a processor reads at once, at most: fewer where all of them take part
    # in one computation, for which it has sixteen registers.
    most: ClassVar[int] = 64
    # Rows that a thread asks for at once in a look-up.
    single: ClassVar[str] = "1"
    rows: int
    dim: int

    def form(self, entries: int) -> str:
        """The C++ type that reads so many entries at once."""
        raise NotImplementedError

    def unit(self, among: Sequence[int] = GPU) -> int:
        """Entries that may be read at once, one of these numbers."""
        return choose_entries(self.dim, among=among)

    def inner(self) -> list[Format]:
        """Formats that it holds."""
        return []

    @property
    def widest(self) -> int:
        """Entries that a processor reads at once, at most."""
        return min([self.most, *(part.widest for part in self.inner())])

    @property
    def made(self) -> int:
        """Bytes on the GPU that the layout's own arrays do not hold."""
        return sum(part.made for part in self.inner())

    @cached_property
    def kept(self) -> dict[object, Any]:
        """What is made for this format at the first call, and used in others."""
        return {}

    @cached_property
    def arguments(self) -> np.ndarray:
        """The struct that a kernel takes by value: int64s, as one structured entry."""
        numbers = list_numbers(self)
        held = np.zeros((), dtype=[("numbers", np.int64, (len(numbers),))])
        held["numbers"] = numbers
        return held

    @cached_property
    def source(self) -> str:
        """C++ that declares the structs and classes by which rows are read."""
        headers, waiting = set(), [self]
        while waiting:
            one = waiting.pop()
            headers.add(one.header)
            waiting += one.inner()
        kinds = [kind for kind in DESCRIBED if kind.header in headers]
        held = (part for kind in kinds for part in (*kind.parts, kind))
        structs = dict.fromkeys([Digit, *held])
        includes = [f'#include "{header}"' for header in sorted(headers)]
        return "\n".join([*map(emit_struct, structs), *includes, ""])


def choose_entries(*widths: int, among: Sequence[int] = GPU) -> int:
    """The first of these numbers of which all widths are a multiple."""
    return next(e for e in among if not any(width % e for width in widths))


def narrow(among: Sequence[int], *widths: int) -> Sequence[int]:
    """Those of these numbers of which all widths are a multiple."""
    return [e for e in among if not any(width % e for width in widths)]


@runtime_checkable
class Described(Protocol):
    """A layout: it says how its rows are read."""

    def describe(self) -> Format | None:
        """Its format, if a kernel reads it."""


def describe_rows(part: Described | Shaped) -> Format | None:
    """The format of a layout, or of an array of floats; None where there is none."""
    if isinstance(part, Described):
        described = part.describe()
        return described if described and described.composes else None
    return DenseFormat.of(array_module(part).ascontiguousarray(part))


def describe_all(parts: Iterable[Described | Shaped]) -> list[Format] | None:
    """Formats of layouts and arrays, or None where one has none."""
    found = [describe_rows(part) for part in parts]
    return None if any(one is None for one in found) else given(*found)


def module_of(*parts: Format) -> ModuleType:
    """NumPy or CuPy, whichever made the arrays of formats."""
    for part in parts:
        for name in told_fields(type(part)):
            value = getattr(part, name)
            if isinstance(value, Format):
                return module_of(value)
            if hasattr(value, "dtype"):
                return array_module(value)
    return np


def form_of(part: Format | None, entries: int) -> str:
    """The C++ type of a part that may be missing."""
    return "Nothing" if part is None else part.form(entries)


def given(*parts: Format | None) -> list[Format]:
    """Those that are there."""
    return [part for part in parts if part is not None]


@dataclass(eq=False)
class PieceFormat(Format):
    """Rows of one table, of which a thread reads pieces of many entries."""

    table: Address
    stride: Number

    def shape(self, use: str) -> Shape:
        """Entries of a piece, and rows that a thread asks for at once; as measured.

        Parameters
        ----------
        use : {"single", "short", "pooled"}
            A look-up, bags of fewer than four ids on average, or longer ones.
        """
        raise NotImplementedError

    def piece(self, entries: int, ahead: int) -> str:
        """The C++ type that reads pieces of so many entries."""
        raise NotImplementedError

    @property
    def least(self) -> int:
        """Entries of the smallest piece."""
        return 4

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return self.piece(entries, 4)


@dataclass(eq=False)
class DenseFormat(PieceFormat):
    """Rows of float32, float16 or bfloat16 (as uint16)."""

    header = "dense.cuh"
    number: str

    @classmethod
    def of(cls, values: Shaped) -> DenseFormat:
        """Rows of a 2-D array, side by side or padded."""
        rows, width = values.shape
        return cls(rows, width, values, row_stride(values), str(values.dtype))

    def shape(self, use: str) -> Shape:
        """As for `PieceFormat`."""
        fetched = 16 // np.dtype(self.number).itemsize
        return (fetched if use == "single" else 2 * fetched, 4)

    def piece(self, entries: int, ahead: int) -> str:
        """As for `PieceFormat`."""
        return f"Dense<{entries}, {FLOATS[self.number]}, {ahead}>"


@dataclass(eq=False)
class CodedFormat(Format):
    """Codes, and each row's scale and bias behind them; centred rows have no bias."""

    header = "rowwise.cuh"
    table: Address
    stride: Number
    tail: Number
    bits: int
    half: bool
    centred: bool
    extra: int = 0

    @classmethod
    def of(
        cls, rows: Shaped, dim: int, bits: int, half: bool, centred: bool
    ) -> CodedFormat:
        """Padded rows, uint8 (n, bytes): codes, then scale and, unless they are
        centred, bias.
        """
        tail = -(-dim * bits // 8)
        stride = row_stride(rows)
        return cls(rows.shape[0], dim, rows, stride, tail, bits, half, centred)

    @classmethod
    def beside(cls, codes: Shaped, tail: Shaped, dim: int, bits: int) -> CodedFormat:
        """Codes, uint8 (n, bytes), and float32 scales and biases (n, 2), or scales
        alone (n, 1).
        """
        table = pack_beside(codes, tail)
        found = cls.of(table, dim, bits, half=False, centred=tail.shape[1] == 1)
        found.extra = found.rows * found.stride
        return found

    @property
    def made(self) -> int:
        """As for `Format`."""
        return self.extra


@dataclass(eq=False)
class RowwiseFormat(CodedFormat, PieceFormat):
    """Codes of 8, 4, 2 or 1 bits, each within a byte."""

    def shape(self, use: str) -> Shape:
        """As for `PieceFormat`."""
        pooled = {8: (16, 2), 4: (32, 4), 2: (64, 4), 1: (64, 4)}[self.bits]
        return {"single": (8, 4), "short": (16, 4), "pooled": pooled}[use]

    @property
    def least(self) -> int:
        """As for `PieceFormat`."""
        return max(4, 8 // self.bits)

    def piece(self, entries: int, ahead: int) -> str:
        """As for `PieceFormat`."""
        aligned = self.tail % ((2 if self.half else 4) * (2 - self.centred)) == 0
        flags = f"{write(self.half)}, {write(aligned)}, {write(self.centred)}"
        return f"Rowwise<{entries}, {self.bits}, {flags}, {ahead}>"


@dataclass(eq=False)
class CrossingFormat(CodedFormat):
    """Codes of 3 bits, some of which begin in one byte and end in the next."""

    def form(self, entries: int) -> str:
        """As for `Format`."""
        flags = f"{write(self.half)}, {write(self.centred)}"
        return f"Crossing<{entries}, {self.bits}, {flags}>"


def choose_coded(bits: int) -> type[CodedFormat]:
    """The format of rows of so many bits."""
    return CrossingFormat if 8 % bits else RowwiseFormat


@dataclass(eq=False)
class ApartFormat(Format):
    """Codes, and scales and biases in an array of their own; on a processor alone.

    Parameters
    ----------
    parameters : DenseFormat
        Of float32 or float16 (n, 1): scales of centred rows; or (n, 2), with biases.
    groups : int
        Rows that share them: those from each of `starts` on; all, or none.
    factor : float
        Of all scales.
    """

    header = "rowwise.cuh"
    table: Address
    stride: Number
    parameters: Inner
    starts: AddressOrNull
    groups: Number
    count: Number
    factor: Number
    bits: int

    @classmethod
    def of(
        cls,
        codes: Shaped,
        dim: int,
        bits: int,
        parameters: Format,
        starts: Shaped | None = None,
        factor: int = 1,
    ) -> ApartFormat:
        """Codes, uint8 (n, bytes)."""
        rows, stride = codes.shape[0], row_stride(codes)
        return cls(
            rows, dim, codes, stride, parameters, starts, parameters.rows, rows,
            factor, bits,
        )  # fmt: skip

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.parameters]

    def form(self, entries: int) -> str:
        """As for `Format`."""
        centred = write(self.parameters.dim == 1)
        return f"Apart<{entries}, {self.bits}, {centred}, {self.parameters.form(1)}>"


def write(value: bool) -> str:
    """A truth value in C++."""
    return str(value).lower()


@dataclass(eq=False)
class PackedFormat(Format):
    """Small integers in one stream of bits."""

    header = "packed.cuh"
    words: Address
    bits: Number

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Packed<{entries}>"


@dataclass(eq=False)
class LevelsFormat(Format):
    """Codes of 1 to 8 bits that name levels, and each row's scales behind them."""

    header = "levels.cuh"
    table: Address
    levels: Address
    stride: Number
    tail: Number
    block: Number
    bits: int
    scaling: int

    @classmethod
    def of(
        cls, rows: Shaped, levels: Shaped, dim: int, bits: int, scaling: int, block: int
    ) -> LevelsFormat:
        """Padded rows, uint8 (n, bytes): codes, and then nothing (scaling 0), a float16
        (1), or a byte for each block of columns (2).
        """
        stride, tail = row_stride(rows), -(-dim * bits // 8)
        return cls(rows.shape[0], dim, rows, levels, stride, tail, block, bits, scaling)

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`: entries that are read at once share a scale."""
        widths = (self.dim, self.block) if self.block else (self.dim,)
        return choose_entries(*widths, among=among)

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Levels<{entries}, {self.bits}, {self.scaling}>"


@dataclass(eq=False)
class CodebookFormat(Format):
    """Codes, and the codewords that they name."""

    header = "codebook.cuh"
    codes: Inner
    words: Inner
    books: Number
    width: Number
    firsts: Address
    groups: Number
    starts: AddressOrNull
    added: bool

    @classmethod
    def of(
        cls,
        codes: Format,
        words: Format,
        firsts: Shaped,
        starts: Shaped | None,
        dim: int,
        combine: str,
    ) -> CodebookFormat:
        """Codewords side by side, or added up."""
        groups, books = firsts.shape
        return cls(
            codes.rows, dim, codes, words, books, words.dim, firsts, groups, starts,
            combine == "sum",
        )  # fmt: skip

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.codes, self.words]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.words.unit(narrow(among, self.width, self.dim))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        inner = f"{self.codes.form(1)}, {self.words.form(entries)}"
        return f"Codebook<{entries}, {inner}, {write(self.added)}>"


@dataclass(eq=False)
class HashedFormat(Format):
    """A few tables, of which digits of the id name a row each."""

    header = "hashed.cuh"
    values: Inner
    weights: InnerOrNothing
    columns: Number
    sign: HashNumbers
    weight_digit: Annotated[Digit, Told("Digit")]
    digits: Annotated[Sequence[Digit], Told("Digit", "TABLES")]
    combine: str

    @classmethod
    def of(
        cls,
        shape: Shape,
        combine: str,
        values: Format,
        index: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        signs: Sequence[int] | None = None,
        weights: Format | None = None,
        weight_index: Sequence[int] | None = None,
    ) -> HashedFormat | SideBySideFormat:
        """Rows of `values`, as an index table and the tables' first rows say."""
        digits = [Digit.of(row, start) for row, start in zip(index, starts)]
        if combine == "concat" and len(digits) > FEW_TABLES:
            return SideBySideFormat.of(shape, values, signs or NO_HASH, digits)
        by = NO_DIGIT if weight_index is None else Digit.of(weight_index)
        columns = 0 if weights is None else weights.dim
        return cls(
            *shape, values, weights, columns, signs or NO_HASH, by, digits, combine
        )

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return given(self.values, self.weights)

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.values.unit(narrow(among, self.values.dim, self.dim))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        how = ("sum", "product", "concat").index(self.combine)
        inner = f"{self.values.form(entries)}, {form_of(self.weights, 1)}"
        return f"Hashed<{entries}, {inner}, {len(self.digits)}, {how}>"


@dataclass(eq=False)
class SideBySideFormat(Format):
    """Rows of many tables side by side, of which digits of the id name a row each."""

    header = "hashed.cuh"
    values: Inner
    sign: HashNumbers
    digits: Address
    tables: int

    @classmethod
    def of(
        cls, shape: Shape, values: Format, sign: Sequence[int], digits: Sequence[Digit]
    ) -> SideBySideFormat:
        """Threads read different digits, which the memory serves better by address."""
        numbers = np.array([list_numbers(digit) for digit in digits], dtype=np.int64)
        held = module_of(values).asarray(numbers)
        return cls(*shape, values, sign, held, len(digits))

    @property
    def made(self) -> int:
        """As for `Format`."""
        return int(self.digits.nbytes) + super().made

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.values]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.values.unit(narrow(among, self.values.dim, self.dim))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"SideBySide<{entries}, {self.values.form(entries)}, {self.tables}>"


@dataclass(eq=False)
class SemanticFormat(Format):
    """Rows that stretches of an id's codes name by their hashes."""

    header = "semantic.cuh"
    parts = (Gram,)
    codes: Inner
    values: Inner
    levels: Number
    bits: Number
    starts: AddressOrNull
    fields: Number
    grams: Annotated[Sequence[Gram], Told("Gram", "GRAMS")]
    added: bool

    @classmethod
    def of(
        cls,
        dim: int,
        codes: Format,
        values: Format,
        index: Sequence[Sequence[int]],
        firsts: Sequence[int],
        spans: Sequence[tuple[int, int]],
        bits: int,
        starts: Shaped | None,
        combine: str,
    ) -> SemanticFormat:
        """Codes of so many bits each; the first row of each n-gram's table."""
        grams = [
            Gram(bits * low, bits * (high - low), Digit.of(row, first))
            for row, first, (low, high) in zip(index, firsts, spans)
        ]
        fields = 0 if starts is None else starts.shape[0]
        return cls(
            codes.rows, dim, codes, values, codes.dim, bits, starts, fields, grams,
            combine == "sum",
        )  # fmt: skip

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.codes, self.values]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.values.unit(narrow(among, self.values.dim, self.dim))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        inner = f"{self.codes.form(1)}, {self.values.form(entries)}"
        return f"Semantic<{entries}, {inner}, {len(self.grams)}, {write(self.added)}>"


@dataclass(eq=False)
class PathFormat(Format):
    """A row of a table that runs through a small network."""

    most = 16
    header = "hashed.cuh"
    values: Inner
    networks: Address
    size: Number
    digits: Annotated[Sequence[Digit], Told("Digit", "2")]
    hidden: int
    extra: int = 0

    @classmethod
    def of(
        cls,
        shape: Shape,
        values: Format,
        paths: Shaped,
        index: Sequence[Sequence[int]],
        hidden: int,
        decoded: bool,
    ) -> PathFormat:
        """Networks of so many units, one in each row of `paths`, which the layout
        stores as they are, or decoded for the kernel.
        """
        digits = [Digit.of(row) for row in index]
        extra = paths.nbytes if decoded else 0
        return cls(*shape, values, paths, paths.shape[1], digits, hidden, extra)

    @property
    def made(self) -> int:
        """As for `Format`."""
        return self.extra + self.values.made

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.values]

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Path<{entries}, {self.values.form(1)}, {self.hidden}>"


@dataclass(eq=False)
class ProbedFormat(Format):
    """Rows in slots, each with the id whose row it is."""

    header = "probed.cuh"
    identities: Address
    values: Inner
    slots: Number
    inverse: Number
    window: Number
    missing: Number
    numbers: HashNumbers

    @classmethod
    def of(
        cls,
        shape: Shape,
        identities: Shaped,
        values: Format,
        numbers: Sequence[int],
        window: int,
        default: bool,
    ) -> ProbedFormat:
        """A row of `values` for each slot, and perhaps one for ids without any."""
        slots = identities.shape[0]
        missing = slots if default else -1
        return cls(
            *shape, identities, values, slots, invert(slots), window, missing, numbers
        )

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.values]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.values.unit(narrow(among, self.dim))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        kind = IDENTITIES[str(self.identities.dtype)]
        return f"Probed<{entries}, {self.values.form(entries)}, {kind}>"


@dataclass(eq=False)
class FlatFormat(Format):
    """Blocks of rows anywhere in one array."""

    header = "flat.cuh"
    single = "2"
    values: Address
    places: Number
    inverse: Number
    length: Number
    mixing: HashNumbers
    sign: HashNumbers

    @classmethod
    def of(
        cls,
        shape: Shape,
        values: Shaped,
        block_len: int,
        multipliers: Sequence[int],
        signs: Sequence[int] | None,
    ) -> FlatFormat:
        """Blocks of `block_len` numbers of an array."""
        length = min(block_len, shape[1])
        places = values.size - length + 1
        return cls(
            *shape,
            values,
            places,
            invert(places),
            length,
            multipliers,
            signs or NO_HASH,
        )

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return choose_entries(self.length, among=among)

    def form(self, entries: int) -> str:
        """As for `Format`."""
        blocks = -(-self.dim // self.length)
        if blocks <= FEW_BLOCKS and self.values.size < 2**32:
            return f"FewBlocks<{entries}, {blocks}>"
        return f"Flat<{entries}>"


@dataclass(eq=False)
class TrainFormat(Format):
    """A tensor train of three cores, which are decoded and begin anew."""

    header = "tensor_train.cuh"
    parts = (TrainCore,)
    cores: Annotated[Sequence[TrainCore], Told("TrainCore", "3")]

    @classmethod
    def of(
        cls, shape: Shape, cores: Sequence[Shaped], steps: Sequence[int]
    ) -> TrainFormat:
        """Up to three cores of shape (rows, left / step, columns / step, right)."""
        missing, xp = 3 - len(cores), array_module(cores[0])
        ones = xp.ones((1, 1, 1, 1), dtype=np.float32)
        # On a GPU each core is copied: an array of its own begins at a multiple of 16
        # bytes.
        if is_cupys(cores[0]):
            cores = [xp.array(core, order="C") for core in cores]
        padded = [ones] * missing + list(cores)
        told_cores = [
            TrainCore(
                core, core.shape[0], core.shape[2], core.shape[1], core.shape[3], step
            )
            for core, step in zip(padded, [1] * missing + list(steps))
        ]  # fmt: skip
        return cls(*shape, told_cores)

    @property
    def made(self) -> int:
        """As for `Format`."""
        return sum(core.values.nbytes for core in self.cores)

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return choose_entries(self.cores[2].columns, among=among)

    def form(self, entries: int) -> str:
        """Four entries of the state are read at once where ranks allow it."""
        aligned = not (self.cores[1].right % 4 or self.cores[2].left % 4)
        return f"Train<{entries}, {write(aligned)}>"


@dataclass(eq=False)
class RaggedFormat(Format):
    """Prefixes of rows."""

    header = "ragged.cuh"
    values: Address
    lengths: Address
    starts: Address
    extra: int = 0

    @classmethod
    def of(
        cls, shape: Shape, values: Shaped, lengths: Shaped, starts: Shaped
    ) -> RaggedFormat:
        """On a GPU lengths of a byte are read four at a time: padded to whole words."""
        padded = pad_words(lengths) if is_cupys(lengths) else lengths
        extra = 0 if padded is lengths else padded.nbytes
        return cls(*shape, values, padded, starts, extra)

    @property
    def made(self) -> int:
        """As for `Format`."""
        return self.extra

    def form(self, entries: int) -> str:
        """As for `Format`."""
        kinds = f"{FLOATS[str(self.values.dtype)]}, {INTEGERS[str(self.lengths.dtype)]}"
        return f"Ragged<{entries}, {kinds}>"


@dataclass(eq=False)
class SparseFormat(Format):
    """Entries that are kept, and what stands for the others."""

    header = "ragged.cuh"
    values: Address
    columns: Address
    offsets: Address
    block_rows: Number
    fills: AddressOrNull
    starts: AddressOrNull
    groups: Number

    def form(self, entries: int) -> str:
        """As for `Format`."""
        kinds = f"{FLOATS[str(self.values.dtype)]}, {INTEGERS[str(self.columns.dtype)]}"
        return f"Sparse<{entries}, {kinds}, {write(self.fills is not None)}>"


@dataclass(eq=False)
class AnchorFormat(Format):
    """Weighted sums of anchors."""

    most = 16
    header = "ragged.cuh"
    single = "2"
    anchors: Inner
    weights: Address
    columns: Address
    offsets: Address

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.anchors]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.anchors.unit(among)

    def form(self, entries: int) -> str:
        """As for `Format`."""
        kind = INTEGERS[str(self.columns.dtype)]
        return f"Anchors<{entries}, {self.anchors.form(entries)}, {kind}>"


@dataclass(eq=False)
class GroupFormat:
    """A group of short rows."""

    numbers: InnerOrNothing
    width: Number
    projection: AddressOrNull
    places: AddressOrNull
    first: Number


@dataclass(eq=False)
class GroupedFormat(Format):
    """Short rows, projected or spread."""

    most = 32
    header = "grouped.cuh"
    parts = (DenseFormat, GroupFormat)
    listed: Address
    groups: Number
    planes: AddressOrNull
    bits: Number
    before: AddressOrNull
    members: Sequence[GroupFormat]

    @classmethod
    def of(
        cls,
        shape: Shape,
        tables: Sequence[Format],
        projections: Sequence[Shaped | None],
        columns: Sequence[np.ndarray | None],
        planes: Shaped | None,
        before: Shaped | None,
    ) -> GroupedFormat:
        """Tables of one format, or of several that are told apart."""
        xp = module_of(*tables)
        groups, row = [], 0
        kinds = list({table.form(1): table for table in tables}.values())
        alike = [OneOfFormat.of(table, kinds) for table in tables]
        for table, projection, column in zip(alike, projections, columns):
            width, places = table.dim, None
            if column is not None and 0 < width < shape[1]:
                spread = np.full(shape[1], -1, dtype=np.int16)
                spread[column] = np.arange(width)
                places = xp.asarray(spread)
            groups.append(GroupFormat(table, width, projection, places, row))
            row += table.rows
        numbers = [list_numbers(group) for group in groups]
        listed = xp.asarray(np.array(numbers, dtype=np.int64))
        bits = 0 if planes is None else planes.shape[1]
        return cls(*shape, listed, len(groups), planes, bits, before, groups)

    @property
    def made(self) -> int:
        """As for `Format`."""
        spread = [group.places for group in self.members if group.places is not None]
        own = int(self.listed.nbytes) + sum(int(places.nbytes) for places in spread)
        return own + super().made

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return given(*(group.numbers for group in self.members))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Grouped<{entries}, {self.inner()[0].form(1)}>"


@dataclass(eq=False)
class OthersFormat(Format):
    """The ids that no part before has."""

    header = "parts.cuh"
    part: Inner
    by_number: bool

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.part]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.part.unit(among)

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Others<{self.part.form(entries)}, {write(self.by_number)}>"


@dataclass(eq=False)
class RoutedFormat(Format):
    """The ids that one part names, and the rest."""

    header = "parts.cuh"
    part: Inner
    rest: Inner
    marks: Address
    ranks: Address
    named: Number
    extra: int = 0

    @classmethod
    def of(
        cls,
        parts: Sequence[Format],
        marks: Sequence[Shaped],
        ranks: Sequence[Shaped],
        rows: int,
        open_ids: int,
        extra: int = 0,
    ) -> Format:
        """Parts, and the marks of all but the last, shape (parts - 1, words)."""
        *named, last = parts
        found: Format = OthersFormat(rows, last.dim, last, last.rows >= rows)
        ids = OPEN if open_ids else rows
        for j in reversed(range(len(named))):
            beside = extra if j == 0 else 0
            found = cls(
                ids, last.dim, named[j], found, marks[j], ranks[j], rows, beside
            )
        return found

    @property
    def made(self) -> int:
        """As for `Format`."""
        return self.extra + super().made

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.part, self.rest]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.rest.unit(narrow(among, self.part.unit(among)))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Routed<{self.part.form(entries)}, {self.rest.form(entries)}>"


@dataclass(eq=False)
class OneOfFormat(Format):
    """Rows of one of two kinds; another table stands for the kind that it is not."""

    header = "parts.cuh"
    first_part: Inner
    second_part: Inner
    is_second: Number

    @classmethod
    def of(cls, table: Format, kinds: Sequence[Format]) -> Format:
        """A table, told apart from those that stand for all kinds, its own included."""
        first, *others = kinds
        if not others:
            return table
        if first.form(1) == table.form(1):
            return cls(table.rows, table.dim, table, cls.of(others[0], others), 0)
        return cls(table.rows, table.dim, first, cls.of(table, others), 1)

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.first_part, self.second_part]

    @property
    def made(self) -> int:
        """As for `Format`; what stands for another kind is made for its own table."""
        return (self.second_part if self.is_second else self.first_part).made

    def form(self, entries: int) -> str:
        """As for `Format`."""
        first, second = self.first_part.form(entries), self.second_part.form(entries)
        return f"OneOf<{first}, {second}>"


@dataclass(eq=False)
class AddedFormat(Format):
    """Sums of two rows."""

    header = "parts.cuh"
    first_part: Inner
    second_part: Inner

    @classmethod
    def of(cls, parts: Sequence[Format]) -> Format:
        """Rows of all parts, added up from the first on."""
        found = parts[0]
        for part in parts[1:]:
            found = cls(min(found.rows, part.rows), found.dim, found, part)
        return found

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.first_part, self.second_part]

    def unit(self, among: Sequence[int] = GPU) -> int:
        """As for `Format`."""
        return self.second_part.unit(narrow(among, self.first_part.unit(among)))

    def form(self, entries: int) -> str:
        """As for `Format`."""
        first, second = self.first_part.form(entries), self.second_part.form(entries)
        return f"Added<{first}, {second}>"


@dataclass(eq=False)
class TurnedFormat(Format):
    """Rows times a matrix, float32 (width, dim)."""

    most = 16
    header = "parts.cuh"
    part: Inner
    matrix: Address
    width: Number
    extra: int = 0

    @classmethod
    def of(cls, part: Format, matrix: Shaped, made: bool = False) -> TurnedFormat:
        """Rows of a part, turned; `made` where the layout does not store the matrix."""
        extra = made * int(matrix.nbytes)
        return cls(part.rows, matrix.shape[1], part, matrix, part.dim, extra)

    @property
    def made(self) -> int:
        """As for `Format`."""
        return self.extra + super().made

    def inner(self) -> list[Format]:
        """As for `Format`."""
        return [self.part]

    def form(self, entries: int) -> str:
        """As for `Format`."""
        return f"Turned<{entries}, {self.part.form(1)}>"


@dataclass(eq=False)
class GeneratorFormat(Format):
    """Rows that a network computes from hashes, outside of any other kernel.

    Parameters
    ----------
    codes : int
        Hashes of an id.
    multipliers : three integers
        Of the hashes.
    normal : bool
        Whether hashes become normal numbers, or uniform ones.
    activation : {"relu", "mish"}
    layers : sequence of (matrix, bias)
        CuPy arrays of float32, shapes (inputs, outputs) and (outputs,).
    """

    header = "reading.cuh"
    composes = False
    codes: int
    multipliers: Sequence[int]
    normal: bool
    activation: str
    layers: Sequence[tuple[Shaped, Shaped]]

    @property
    def made(self) -> int:
        """As for `Format`."""
        return sum(int(array.nbytes) for layer in self.layers for array in layer)


# Every format, those that others hold before these.
DESCRIBED: tuple[type[Format], ...] = (
    DenseFormat, RowwiseFormat, CrossingFormat, ApartFormat, LevelsFormat, PackedFormat,
    CodebookFormat, HashedFormat,
    SideBySideFormat, SemanticFormat, PathFormat, ProbedFormat,
    FlatFormat, TrainFormat, RaggedFormat, SparseFormat, AnchorFormat, GroupedFormat,
    OthersFormat, RoutedFormat, OneOfFormat, AddedFormat, TurnedFormat,
)  # fmt: skip
