"""One ONNX graph for all lengths, from graphs of the same code at some.

The exporters write sizes as constants. Graphs made at several lengths are the same but for these: each constant that
differs is replaced by nodes that compute it from the size of an input, where it follows from the lengths as a sum of
multiples, a quotient or a square. What comes out is compared with torch at these lengths and at others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
_MOST_ENTRIES = 64
_DIVISORS = range(2, 9)


class NoForm(Exception):
    """A block's graphs have no common form; the text says why."""


@dataclass(frozen=True)
class Source:
    """Where a graph reads a length: `(size - plus) / times` of an axis of an input.

    Args:
        place: number of the parameter.
        dtype: of onnx.
        shape: its sizes, free ones as text.
        axis: which.
        times, plus: integers.
    """

    place: int
    dtype: int
    shape: tuple[int | str, ...]
    axis: int
    times: int = 1
    plus: int = 0


@dataclass
class _Formula:
    """`floor((times . lengths + squares . lengths^2 + plus) / divisor)`."""

    times: Array
    plus: int
    divisor: int = 1
    squares: Array | None = None


def common(protos: Sequence[Any], lengths: Sequence[Mapping[str, int]], sources: Mapping[str, Source],
           shapes: Mapping[str, Sequence[int | str]]) -> Any:  # fmt: skip
    """The graph for all lengths.

    Args:
        protos: graphs of one block at some lengths, all by the same exporter.
        lengths: these lengths.
        sources: per length where a block can read it; those that are missing cannot be read.
        shapes: per input and output of the graph its shape, free sizes as text.

    Raises:
        NoForm: the graphs differ by more than numbers that follow from the lengths.
    """
    return _Common(protos, lengths, sources, shapes).made()


@dataclass
class _Common:
    protos: Sequence[Any]
    lengths: Sequence[Mapping[str, int]]
    sources: Mapping[str, Source]
    shapes: Mapping[str, Sequence[int | str]]
    before: list[Any] = field(default_factory=list)
    known: dict[Any, str] = field(default_factory=dict)
    taken: dict[str, Any] = field(default_factory=dict)
    serial: int = 0

    def made(self) -> Any:
        """The common graph."""
        first = onnx.ModelProto.FromString(self.protos[0].SerializeToString())
        graph = first.graph
        self._compare_frames()
        self.rows = any(len(item.type.tensor_type.shape.dim) > len(self.shapes[item.name]) for item in graph.input)
        inner = [graph.node, *(proto.graph.node for proto in self.protos[1:])]
        dropped: list[int] = []
        for number, nodes in enumerate(zip(*inner, strict=True)):
            self._node(graph, number, nodes, dropped)
        for items in zip(*(proto.graph.initializer for proto in self.protos), strict=True):
            self._initializer(graph, items)
        kept = [node for number, node in enumerate(graph.node) if number not in dropped]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*self.before, *kept]]
        del graph.node[:]
        graph.node.extend(copies)
        del graph.value_info[:]
        present = {item.name for item in graph.input}
        graph.input.extend(item for name, item in self.taken.items() if name not in present)
        for item in [*graph.input, *graph.output]:
            self._free(item)
        return first

    def _compare_frames(self) -> None:
        kinds = {(len(p.graph.node), len(p.graph.initializer), tuple(i.name for i in p.graph.input),
                  tuple(i.name for i in p.graph.output)) for p in self.protos}  # fmt: skip
        if len(kinds) > 1:
            counts = sorted({len(proto.graph.node) for proto in self.protos})
            raise NoForm(f"it runs other operators at other lengths ({' or '.join(map(str, counts))} of them)")
        functions = {b"".join(function.SerializeToString() for function in proto.functions) for proto in self.protos}
        if len(functions) > 1:
            raise NoForm("its functions depend on the length")
        self.names: list[dict[str, str]] = []
        for proto in self.protos:
            own = {item.name: item.name for item in proto.graph.input}
            for number, item in enumerate(proto.graph.initializer):
                own[item.name] = f"initializer {number}"
            for number, node in enumerate(proto.graph.node):
                own |= {name: f"node {number}.{place}" for place, name in enumerate(node.output)}
            self.names.append(own)

    def _node(self, graph: Any, number: int, nodes: Sequence[Any], dropped: list[int]) -> None:
        first = nodes[0]
        wired = {tuple(own.get(name, name) for name in node.input) for own, node in zip(self.names, nodes, strict=True)}
        if len({(node.op_type, node.domain, len(node.output)) for node in nodes}) > 1 or len(wired) > 1:
            raise NoForm(f"it runs other operators at other lengths (one is {first.op_type})")
        contents = [sorted(attribute.SerializeToString() for attribute in node.attribute) for node in nodes]
        if all(content == contents[0] for content in contents):
            return
        if first.op_type != "Constant":
            raise NoForm(f"{first.op_type} has a setting that follows from the length")
        arrays = [_array(node.attribute[0]) for node in nodes]
        name = first.output[0]
        if not self._shape_of_reshape(graph, name, arrays):
            self._computed(name, arrays)
            dropped.append(number)

    def _initializer(self, graph: Any, items: Sequence[Any]) -> None:
        arrays = [numpy_helper.to_array(item) for item in items]
        if all(_same(array, arrays[0]) for array in arrays):
            return
        name = items[0].name
        kept = [item for item in graph.initializer if item.name != name]
        if self._shape_of_reshape(graph, name, arrays):
            return
        self._computed(name, arrays)
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _shape_of_reshape(self, graph: Any, name: str, arrays: Sequence[Array]) -> bool:
        """A shape for Reshape alone in which one size differs: -1 stands for it, and nothing is computed."""
        users = [(node, place) for node in graph.node for place, other in enumerate(node.input) if other == name]
        if not users or any(node.op_type != "Reshape" or place != 1 for node, place in users):
            return False
        if len({array.shape for array in arrays}) > 1 or (np.stack(arrays) <= 0).any():
            return False
        differs = (np.stack(arrays) != arrays[0]).any(0)
        if int(differs.sum()) != 1:
            return False
        shape = np.where(differs, -1, arrays[0]).astype(np.int64)
        for node in graph.node:
            if node.op_type == "Constant" and name in node.output:
                node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(shape)))
        for item in graph.initializer:
            if item.name == name:
                item.CopyFrom(numpy_helper.from_array(shape, name))
        return True

    # -- constants that follow from lengths ----------------------------------------------------------------------------

    def _computed(self, name: str, arrays: Sequence[Array]) -> None:
        """Nodes for a constant that differs from length to length."""
        dtype = arrays[0].dtype
        key = (dtype.str, *((array.shape, array.tobytes()) for array in arrays))
        if key not in self.known:
            if len({array.shape for array in arrays}) == 1:
                made = self._numbers(arrays)
            elif all(array.size and (array == array.flat[0]).all() for array in arrays):
                made = self._filled(arrays)
            else:
                flat = arrays[0].ndim < 2 or min(arrays[0].shape[-2:]) < 2
                made = self._range(arrays) if flat else self._triangle(arrays)
            self.known[key] = made
        self._emit("Identity", [self.known[key]], name)

    def _numbers(self, arrays: Sequence[Array]) -> str:
        """Numbers of which each follows from the lengths."""
        shape, dtype = arrays[0].shape, arrays[0].dtype
        if arrays[0].size > _MOST_ENTRIES or any((array != np.round(array)).any() for array in arrays):
            raise NoForm("a number follows from the length in a way that is neither a multiple nor a quotient")
        columns = np.stack([array.reshape(-1) for array in arrays]).astype(np.int64).T
        formulas = [self._formula(column) for column in columns]
        vector = self._vector(formulas)
        if shape != (len(formulas),):
            vector = self._emit("Reshape", [vector, self._constant(list(shape))])
        return vector if dtype == np.int64 else self._emit("Cast", [vector], to=helper.np_dtype_to_tensor_dtype(dtype))

    def _filled(self, arrays: Sequence[Array]) -> str:
        """One number in a shape that follows from the lengths."""
        if len({(array.ndim, array.flat[0].item()) for array in arrays}) > 1:
            raise NoForm("a table of numbers follows from the length")
        shape = self._numbers([np.array(array.shape, dtype=np.int64) for array in arrays])
        value = numpy_helper.from_array(arrays[0].reshape(-1)[:1])
        return self._emit("ConstantOfShape", [shape], value=value)

    def _triangle(self, arrays: Sequence[Array]) -> str:
        """One number above a diagonal of a matrix and another one below: what a causal mask is."""
        edges, pairs = [], set()
        for array in arrays:
            rows, columns = array.shape[-2:]
            table = array.reshape(-1, rows, columns)[0]
            above, low, high = np.arange(columns) - np.arange(rows)[:, None], table[-1, 0], table[0, -1]
            edge = int(above[table == high].min())
            if array.size != table.size or not (np.where(above >= edge, high, low) == table).all():
                raise NoForm("a table of numbers follows from the length")
            edges.append(np.array([edge], dtype=np.int64))
            pairs.add((low.tobytes(), high.tobytes()))
        if len(pairs) > 1:
            raise NoForm("a table of numbers follows from the length")
        counts = [self._numbers([np.array(array.shape[axis], dtype=np.int64) for array in arrays]) for axis in (-2, -1)]
        rows_, columns_ = (self._emit("Range", [self._constant(0), n, self._constant(1)]) for n in counts)
        rows_ = self._emit("Reshape", [rows_, self._constant([-1, 1])])
        above_ = self._emit("Sub", [columns_, rows_])
        test = self._emit("Less", [above_, self._numbers(edges)])
        if low.dtype == np.bool_:  # onnxruntime has no Where for these
            made = test if low else self._emit("Not", [test])
        else:
            values = [self._emit("Constant", [], value=numpy_helper.from_array(each[None])) for each in (low, high)]
            made = self._emit("Where", [test, *values])
        more = list(range(arrays[0].ndim - 2))
        return self._emit("Unsqueeze", [made, self._constant(more)]) if more else made

    def _range(self, arrays: Sequence[Array]) -> str:
        """0, 1, 2, ... along the one axis whose size follows from the lengths."""
        flat = [array.reshape(-1) for array in arrays]
        if arrays[0].dtype.kind not in "iu":
            raise NoForm("a table of numbers follows from the length")
        steps = {tuple(np.unique(np.diff(array))) for array in flat if array.size > 1}
        starts = {array[0].item() for array in flat if array.size}
        thin = all(sorted(array.shape)[:-1] == [1] * (array.ndim - 1) for array in arrays)
        if len(steps) != 1 or len(starts) != 1 or len(next(iter(steps))) != 1 or not thin:
            raise NoForm("a table of numbers follows from the length")
        dtype, step, start = arrays[0].dtype, np.int64(next(iter(steps))[0]), np.int64(next(iter(starts)))
        if len({array.ndim for array in arrays}) > 1:
            raise NoForm("a table of numbers follows from the length")
        stop = self._numbers([np.array(start + step * array.size, dtype=np.int64) for array in flat])
        made = self._emit("Range", [self._constant(int(start)), stop, self._constant(int(step))])
        if arrays[0].ndim > 1:
            axis = int(np.argmax(arrays[0].shape))
            sizes = [-1 if n == axis else 1 for n in range(arrays[0].ndim)]
            made = self._emit("Reshape", [made, self._constant(sizes)])
        return made if dtype == np.int64 else self._emit("Cast", [made], to=helper.np_dtype_to_tensor_dtype(dtype))

    def _formula(self, values: Array) -> _Formula:
        names = list(self.lengths[0])
        sizes = np.array([[each[name] for name in names] for each in self.lengths], dtype=np.int64)
        zero = np.zeros(len(names), dtype=np.int64)
        if (values == values[0]).all():
            return _Formula(zero, int(values[0]))
        found = _solved(np.column_stack([sizes, np.ones(len(sizes), np.int64)]), values)
        if found is not None:
            return _Formula(found[:-1], int(found[-1]))
        for column in range(len(names)):
            for divisor in _DIVISORS:
                rest = divisor * values - sizes[:, column]  # floor((n + r) / d) * d - n lies in (r - d, r]
                low, high = int(rest.max()), int(rest.min()) + divisor - 1
                if low <= high:
                    times = zero.copy()
                    times[column] = 1
                    return _Formula(times, low, divisor)
        found = _solved(np.column_stack([sizes**2, sizes, np.ones(len(sizes), np.int64)]), values)
        if found is not None:
            return _Formula(found[len(names) : -1], int(found[-1]), squares=found[: len(names)])
        raise NoForm("a number follows from the length in a way that is neither a multiple nor a quotient")

    def _vector(self, formulas: Sequence[_Formula]) -> str:
        """Several numbers as one vector."""
        made = self._constant([formula.plus for formula in formulas])
        for column, name in enumerate(self.lengths[0]):
            times = [int(formula.times[column]) for formula in formulas]
            squares = [0 if formula.squares is None else int(formula.squares[column]) for formula in formulas]
            if any(times):
                term = self._length(name)
                term = term if times == [1] else self._emit("Mul", [term, self._constant(times)])
                made = self._emit("Add", [term, made])
            if any(squares):
                square = self._emit("Mul", [self._length(name), self._length(name)])
                made = self._emit("Add", [self._emit("Mul", [square, self._constant(squares)]), made])
        divisors = [formula.divisor for formula in formulas]
        if any(divisor > 1 for divisor in divisors):
            made = self._emit("Div", [made, self._constant(divisors)])
        return made

    def _length(self, name: str) -> str:
        """A length as a vector of one number."""
        key = ("length", name)
        if key in self.known:
            return self.known[key]
        source = self.sources.get(name)
        if source is None:
            raise NoForm("it needs the length, and is given nothing that has it")
        given = f"p#{source.place}"
        shape = ["N", *source.shape] if self.rows else list(source.shape)
        self.taken[given] = helper.make_tensor_value_info(given, source.dtype, shape)
        axis = source.axis + self.rows
        size = self._emit("Shape", [given], start=axis, end=axis + 1)
        if source.plus:
            size = self._emit("Sub", [size, self._constant([source.plus])])
        if source.times != 1:
            size = self._emit("Div", [size, self._constant([source.times])])
        self.known[key] = size
        return size

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        self.serial += 1
        name = output or f"l#{self.serial}"
        self.before.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _constant(self, values: Any) -> str:
        key = ("constant", repr(values))
        if key not in self.known:
            value = numpy_helper.from_array(np.asarray(values, dtype=np.int64))
            self.known[key] = self._emit("Constant", [], value=value)
        return self.known[key]

    def _free(self, item: Any) -> None:
        """Write free sizes into the type of an input or output."""
        kind = item.type.tensor_type
        shape = list(self.shapes[item.name])
        if len(kind.shape.dim) == len(shape) + 1:
            shape.insert(0, "N")
        item.CopyFrom(helper.make_tensor_value_info(item.name, kind.elem_type, shape))


def _array(attribute: Any) -> Array:
    """The value of a Constant node."""
    value = helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if attribute.name == "value" else np.asarray(value)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _solved(matrix: Array, values: Array) -> Array | None:
    """Integers x with matrix x = values; None where there are none."""
    found = np.round(np.linalg.lstsq(matrix.astype(np.float64), values.astype(np.float64), rcond=None)[0])
    whole = found.astype(np.int64)
    return whole if (matrix @ whole == values).all() else None
