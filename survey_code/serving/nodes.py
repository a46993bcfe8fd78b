"""A graph of ONNX's standard nodes, written like a formula over arrays.

Operators of `Value` add a node each, so that what reads a layout's rows in a graph
looks like what reads them in NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

OPSET = 18
# The version of the file format that came with it.
IR_VERSION = 8
# Numbers in their order that are stored; more of them are made by a node.
MOST_LISTED = 4

# What nodes take: integers become int64, fractions float32, arrays what they are.
Term: TypeAlias = "Value | int | float | np.ndarray | np.generic"


@dataclass(frozen=True)
class Value:
    """What a node gives, or an array that is stored.

    Parameters
    ----------
    graph : Nodes
        Where it belongs.
    name : str
    """

    graph: Nodes
    name: str

    def __add__(self, other: Term) -> Value:
        return self.graph.add("Add", self, other)

    def __sub__(self, other: Term) -> Value:
        return self.graph.add("Sub", self, other)

    def __mul__(self, other: Term) -> Value:
        return self.graph.add("Mul", self, other)

    def __matmul__(self, other: Term) -> Value:
        return self.graph.add("MatMul", self, other)

    def __floordiv__(self, other: Term) -> Value:
        # Integers here are not negative, so that to cut and to floor is the same.
        return self.graph.add("Div", self, other)

    def __mod__(self, other: Term) -> Value:
        return self.graph.add("Mod", self, other)

    def __and__(self, other: Term) -> Value:
        return self.graph.add("BitwiseAnd", self, other)

    def __or__(self, other: Term) -> Value:
        return self.graph.add("BitwiseOr", self, other)

    def __xor__(self, other: Term) -> Value:
        return self.graph.add("BitwiseXor", self, other)

    def __rshift__(self, other: Term) -> Value:
        return self.graph.add("BitShift", self, other, direction="RIGHT")

    def __lt__(self, other: Term) -> Value:
        return self.graph.add("Less", self, other)

    def __ge__(self, other: Term) -> Value:
        return self.graph.add("GreaterOrEqual", self, other)

    def equals(self, other: Term) -> Value:
        """Where both are the same: truth values."""
        return self.graph.add("Equal", self, other)

    def at_most(self, other: Term) -> Value:
        """The smaller of both."""
        return self.graph.add("Min", self, other)

    def to(self, kind: npt.DTypeLike) -> Value:
        """The same numbers in another type."""
        from onnx.helper import np_dtype_to_tensor_dtype

        code = int(np_dtype_to_tensor_dtype(np.dtype(kind)))
        return self.graph.add("Cast", self, to=code)

    def reshape(self, *shape: int) -> Value:
        """In another shape; -1 is what is left over."""
        return self.graph.add("Reshape", self, np.array(shape))

    def cut(self, first: int, stop: int) -> Value:
        """Columns `first` to `stop - 1` of two axes."""
        ends = (np.array([place]) for place in (first, stop, 1))
        return self.graph.add("Slice", self, *ends)

    def reduce(self, how: str) -> Value:
        """``"Sum"``, ``"Prod"`` or ``"Max"`` over the second axis."""
        return self.graph.add(f"Reduce{how}", self, np.array([1]), keepdims=0)

    def where(self, yes: Term, no: Term) -> Value:
        """The one or the other, as these truth values say."""
        return self.graph.add("Where", self, yes, no)


class Nodes:
    """Nodes and stored arrays of a graph that is being built.

    An array is stored as it is, byte for byte.
    """

    def __init__(self) -> None:
        self.arrays: list[onnx.TensorProto] = []
        # The nodes; while a loop is written, its own behind those around it.
        self.open: list[list[onnx.NodeProto]] = [[]]
        self._stored: dict[tuple[object, ...], Value] = {}
        self._added: dict[tuple[object, ...], Value] = {}
        self._named = 0

    def name(self) -> str:
        """A name that no other value has; short, since it stands there often."""
        self._named += 1
        return np.base_repr(self._named, 36)

    def store(self, array: np.ndarray | np.generic, kind: str = "") -> Value:
        """An array of the graph, once however often it is used.

        `kind` names a type that NumPy has not.
        """
        from onnx import TensorProto
        from onnx.helper import np_dtype_to_tensor_dtype

        held = np.asarray(array)
        contents = held.astype(held.dtype.newbyteorder("<"), copy=False).tobytes()
        digest = hashlib.sha256(contents).digest()
        key = (kind or held.dtype.name, held.shape, digest)
        if key in self._stored:
            return self._stored[key]
        code = int(getattr(TensorProto, kind)) if kind else None
        tensor = TensorProto(
            name=self.name(),
            data_type=code or int(np_dtype_to_tensor_dtype(held.dtype)),
            dims=held.shape,
        )
        if held.dtype in (np.int64, np.uint64) and held.size == 1 and 0 <= held < 2**42:
            # In as few bytes as the number needs.
            getattr(tensor, f"{held.dtype}_data").append(int(held.item()))
        else:
            tensor.raw_data = contents
        self.arrays.append(tensor)
        self._stored[key] = Value(self, tensor.name)
        return self._stored[key]

    def take_in(self, term: Term) -> Value:
        """A value as it is; of a number or an array, one that is stored."""
        if isinstance(term, Value):
            return term
        if isinstance(term, int):
            return self.store(np.int64(term))
        return self.store(np.float32(term) if isinstance(term, float) else term)

    def add(self, op: str, *terms: Term, **attributes: int | str | list[int]) -> Value:
        """What a node gives; a new one, unless there is the same already."""
        from onnx.helper import make_attribute, make_node

        names = [self.take_in(term).name for term in terms]
        key = (op, *names, repr(attributes))
        if key in self._added:
            return self._added[key]
        value = Value(self, self.name())
        node = make_node(op, names, [value.name])
        node.attribute.extend(make_attribute(*it) for it in attributes.items())
        self.open[-1].append(node)
        if len(self.open) == 1:  # what a loop makes is seen in it only
            self._added[key] = value
        return value

    def join(self, parts: Sequence[Value], axis: int) -> Value:
        """Values one after another."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=axis)

    def count(self, number: int) -> Value:
        """Integers from 0 up, so many: int64."""
        if number <= MOST_LISTED:
            return self.store(np.arange(number))
        return self.add("Range", 0, number, 1)

    def repeat(
        self, times: int, state: Value, step: Callable[[Value, Value], Value]
    ) -> Value:
        """What a state becomes in so many steps.

        Parameters
        ----------
        times : int
        state : Value
            int64 along one axis.
        step : callable
            Of the number of steps before and the state then; gives the next one.
        """
        from onnx import TensorProto
        from onnx.helper import make_graph, make_node, make_tensor_value_info

        turn, before, goes = (Value(self, self.name()) for _ in range(3))
        self.open.append([])
        after = step(turn, before)
        still = self.add("Identity", goes)
        inside = self.open.pop()

        def describe(value: Value, code: int, *shape: str) -> onnx.ValueInfoProto:
            return make_tensor_value_info(value.name, code, shape)

        body = make_graph(
            inside,
            "step",
            [
                describe(turn, TensorProto.INT64),
                describe(goes, TensorProto.BOOL),
                describe(before, TensorProto.INT64, "count"),
            ],
            [
                describe(still, TensorProto.BOOL),
                describe(after, TensorProto.INT64, "count"),
            ],
        )
        last = Value(self, self.name())
        names = [self.take_in(times).name, "", state.name]
        self.open[-1].append(make_node("Loop", names, [last.name], body=body))
        return last
