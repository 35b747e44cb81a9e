"""Extraction: a sub-network as a plain, really smaller module."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pliant.core import PliantError, as_call, make_output
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Named, Node, Ref, refs, resolve_target, substitute
from pliant.graph.patches import Patch

_METHODS = {"aten.view": "reshape", "aten.reshape": "reshape", "aten._unsafe_view": "reshape", "aten.expand": "expand",
            "aten.repeat": "repeat", "aten.sym_size": "size"}  # fmt: skip
"""Operators written as tensor methods, so that tracers see sizes that depend on the batch."""
_PUBLIC: dict[str, Callable[..., Any]] = {
    "aten.conv1d.default": torch.conv1d, "aten.conv2d.default": torch.conv2d, "aten.conv3d.default": torch.conv3d,
    "aten.linear.default": F.linear, "aten.batch_norm.default": torch.batch_norm, "aten.relu.default": torch.relu,
    "aten.layer_norm.default": torch.layer_norm, "aten.gelu.default": F.gelu, "aten.dropout.default": torch.dropout,
    "aten.add.Tensor": torch.add, "aten.mul.Tensor": torch.mul, "aten.embedding.default": torch.embedding,
    "aten.matmul.default": torch.matmul, "aten.addmm.default": torch.addmm, "aten.tanh.default": torch.tanh,
    "aten.transpose.int": torch.transpose, "aten.permute.default": torch.permute,
    "aten.scaled_dot_product_attention.default": F.scaled_dot_product_attention,
}  # fmt: skip
"""Operators with a public function of the same signature, which torch calls with less ado than the overload."""
_FORGET_RESULT = {"aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear", "aten.batch_norm", "aten.group_norm",
                  "aten.add", "aten.addmm"}  # fmt: skip
"""Operators whose gradient does not read their result, so that it may be written over."""


def extract_module(
    graph: Graph, states: Mapping[str, Tensor], sizes: Sequence[int], spans: Sequence[bool], name: str
) -> fx.GraphModule:
    """A `GraphModule` with original parameter names and live `train()` / `eval()`.

    Args:
        graph: the traced network.
        states: sliced tensors of the sub-network by state name (tied names share one object).
        sizes: values of the graph's patches.
        spans: which spans are kept.
        name: class name of the result.
    """
    root = nn.Module()
    for state, tensor in states.items():
        attach(root, state, tensor)
    builder = _Builder(graph, sizes, spans)
    new = builder.build(set(states))
    return fx.GraphModule(root, new, class_name=name)


def attach(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or buffer at its dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner._modules[part] = nn.Module()
        owner = owner._modules[part]  # type: ignore[assignment]
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


def forgive(root: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before loading a state dict: fit the names of an original's to those of its elastic copy.

    The copy has each tied tensor once and lacks what no forward uses (`root._others`); it has constants and buffers
    that the original does not store (`root._own`), which stay as they are.
    """
    for name in root._others:  # type: ignore[union-attr]
        state_dict.pop(prefix + name, None)
    buffers = dict(root.named_buffers(remove_duplicate=False))
    for name in root._own:  # type: ignore[union-attr]
        state_dict.setdefault(prefix + name, buffers[name])


class _Builder:
    def __init__(self, graph: Graph, sizes: Sequence[int], spans: Sequence[bool]) -> None:
        self.source, self.sizes = graph, sizes
        self.skipped = {i for i, keep in enumerate(spans) if not keep}
        self.patches: dict[str, list[tuple[int, Patch]]] = {}
        for i, patch in enumerate(graph.patches):
            self.patches.setdefault(patch.node, []).append((i, patch))
        self.shortcut = {span.merge: span.shortcut for i, span in enumerate(graph.spans) if i in self.skipped}
        self.nodes = {node.name: node for node in graph.program}
        self.readers = Counter(ref.name for node in graph.program for ref in refs((node.args, node.kwargs)))
        self.graph = fx.Graph()
        self.env: dict[str, Any] = {}

    def build(self, used: set[str]) -> fx.Graph:
        for node in self.source.program:
            if node.kind == "input":
                self.env[node.name] = self.graph.placeholder(node.target)
            elif self.skipped & self.source.guards.get(node.name, frozenset()):
                continue
            elif node.name in self.shortcut:
                self.env[node.name] = self.env[self.shortcut[node.name]]
            elif node.kind == "state":
                if node.target in used:
                    self.env[node.name] = self.graph.get_attr(node.target)
            else:
                self.env[node.name] = self._call(node)
        self.graph.output(self._value(self.source.program.output))
        return self.graph

    def _lookup(self, ref: Ref) -> Any:
        if ref.name == TRAINING and TRAINING not in self.env:
            with self.graph.inserting_before():
                self.env[TRAINING] = self.graph.get_attr(TRAINING)
        return self.env[ref.name]

    def _value(self, value: Any) -> Any:
        if isinstance(value, Named):
            return self.graph.call_function(make_output, (value.keys, *[self._value(item) for item in value]))
        if isinstance(value, tuple | list):
            return type(value)(self._value(item) for item in value)
        if isinstance(value, dict):
            return {key: self._value(item) for key, item in value.items()}
        return self._lookup(value) if isinstance(value, Ref) else value

    def _call(self, node: Node) -> fx.Node:
        args, kwargs = substitute((list(node.args), node.kwargs), self._lookup)
        for i, patch in self.patches.get(node.name, ()):
            target: Any = kwargs if isinstance(patch.key, str) else args
            new: Any = self.sizes[i]
            if patch.ratio:
                scaled = self.graph.call_method("__mul__", (target[patch.key][patch.item], new))
                new = self.graph.call_method("__floordiv__", (scaled, len(patch.axis.group)))
            if patch.item is None:
                target[patch.key] = new
            else:
                target[patch.key] = [new if j == patch.item else entry for j, entry in enumerate(target[patch.key])]
        method = _METHODS.get(node.packet)
        if method is not None and not kwargs:
            return self.graph.call_method(method, tuple(args))
        if node.in_place and self._overwritten(node.args[0]):
            written = node.packet.removeprefix("aten.") + "_"
            if hasattr(Tensor, written):
                return self.graph.call_method(written, tuple(args), kwargs)
            overload = f"aten.{written}.{node.target.rpartition('.')[2]}"
            return self.graph.call_function(resolve_target(overload), tuple(args), kwargs)
        return self.graph.call_function(_PUBLIC.get(node.target) or resolve_target(node.target), tuple(args), kwargs)

    def _overwritten(self, ref: Any) -> bool:
        """Whether the network's writing over a value can be kept.

        It must be the value the network wrote over (a skipped span hands on its shortcut, which others read), nobody
        else may read it, and its maker must not need it for gradients.
        """
        maker = self.nodes[ref.name]
        return maker.packet in _FORGET_RESULT and ref.name not in self.shortcut and self.readers[ref.name] == 1


class _Statistics(fx.Interpreter):
    """Runs a module on batches and averages the statistics that its batch normalisations see."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sums: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}  # a shared layer sees several inputs a batch
        self.batches = 0

    def run_node(self, n: fx.Node) -> Any:
        """Batch normalisation by the batch's own statistics, which are recorded; all else as written."""
        if n.target is not torch.batch_norm:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        x, weight, bias, _, _, _, _, eps, *_ = args
        dims = [axis for axis in range(x.dim()) if axis != 1]
        if n.args[3] is not None:
            for place, value in zip(n.args[3:5], (x.mean(dims), x.var(dims)), strict=True):
                name = str(place.target)  # type: ignore[union-attr]
                self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
                self.calls[name] = self.calls.get(name, 0) + 1
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


def calibrate(module: fx.GraphModule, batches: Iterable[Any]) -> None:
    """Set the running statistics of every batch normalisation to their mean over training batches, in place.

    Args:
        module: an extracted module.
        batches: inputs (tensor, tuple or dict), each with more than one row.

    Raises:
        PliantError: there are no batches.
    """
    names = [node.target for node in module.graph.nodes if node.target is torch.batch_norm]
    if not names:
        return
    statistics = _Statistics(module)
    places = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    mode = module.training
    module.eval()
    device = next((tensor.device for tensor in module.buffers()), torch.device("cpu"))
    with torch.no_grad():
        for batch in batches:
            args, kwargs = as_call(batch)
            given = dict(zip(places, args, strict=False)) | kwargs
            if set(given) != set(places):
                raise PliantError(f"a batch to calibrate with holds {sorted(given)}, the network takes {places}")
            statistics.run(*[given[place].to(device) for place in places])
            statistics.batches += 1
    module.train(mode)
    if not statistics.batches:
        raise PliantError("no batches to estimate BatchNorm statistics from", fix="give calibrate at least one batch")
    buffers = dict(module.named_buffers())
    for name, total in statistics.sums.items():
        buffers[name].copy_(total / statistics.calls[name])
