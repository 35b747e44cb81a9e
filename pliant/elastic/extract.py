"""Extraction: a sub-network as a plain, really smaller module."""

import copy
import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pliant.core import PliantError, as_call, copied, make_output, map_tensors
from pliant.core.forms import ABSENT, Fields, Slot, must_be, part_of, parts_of, slots
from pliant.elastic.operators import function_of, in_place_of, method_of, overwriting
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Named, Node, Ref, call_opaque, refs, substitute
from pliant.graph.patches import Patch


def extract_module(
    graph: Graph,
    states: Mapping[str, Tensor],
    sizes: Sequence[int],
    spans: Sequence[bool],
    name: str,
    *,
    shared: Mapping[int, Tensor] | None = None,
) -> fx.GraphModule:
    """A `GraphModule` with original parameter names and live `train()` / `eval()`.

    Args:
        graph: the traced network.
        states: sliced tensors of the sub-network by state name (tied names share one object).
        sizes: values of the graph's patches.
        spans: which spans are kept.
        name: class name of the result.
        shared: `id` of a full-size tensor to the one in `states`, for sub-modules that run as they are and use it too.
    """
    root = nn.Module()
    for path in graph.opaque_paths(graph.skipped(spans)):
        attach_module(root, path, copied(graph.program.opaque[path].module, dict(shared or {})))
    for state, tensor in states.items():
        attach(root, state, tensor)
    builder = _Builder(graph, sizes, spans, root)
    new = builder.build(set(states))
    return fx.GraphModule(root, new, class_name=name)


def check_names(model: nn.Module) -> None:
    """Refuse names at the root that an extracted network, an `fx.GraphModule`, needs for itself.

    Raises:
        PliantError: there is such a sub-module, parameter or buffer.
    """
    taken = {*dir(fx.GraphModule(nn.Module(), fx.Graph()))} - {*dir(nn.Module())}
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in taken:
            fix = f"give the attribute {name!r} another name"
            raise PliantError("extracted networks are torch.fx graph modules, which use this name", where=name, fix=fix)


def attach(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or buffer at its dotted name, making the modules on the way."""
    owner, leaf = _owner_of(root, name)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor


def attach_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at its dotted name, making the modules on the way."""
    owner, leaf = _owner_of(root, name)
    owner._modules[leaf] = module


def parameter_of(root: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a dotted name; unlike `get_parameter` also where root has a property of the same name."""
    owner, leaf = _owner_of(root, name)
    return owner._parameters[leaf]  # type: ignore[return-value]


def _owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    for part in path:
        root = root._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
    return root, leaf


class TrainingOnly(nn.Module):
    """Calls of training alone; in evaluation it gives out None for each of its results."""

    def __init__(self, inside: nn.Module, count: int) -> None:
        super().__init__()
        self.inside, self.count = inside, count

    def forward(self, *operands: Any) -> Any:
        """The results, or nothing."""
        return self.inside(*operands) if self.training else (None,) * self.count


def forgive(root: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before loading a state dict: fit the names of an original's to those of its elastic copy.

    The copy has each tied tensor once and lacks what no forward uses (`root._others`); it has constants and buffers
    that the original does not store (`root._own`, kernel transforms), which stay as they are.
    """
    for name in root._others:  # type: ignore[union-attr]
        state_dict.pop(prefix + name, None)
    held = dict(root.named_buffers(remove_duplicate=False)) | dict(root.named_parameters())
    for name in (*root._own, *root._transforms.names):  # type: ignore[union-attr, misc]
        state_dict.setdefault(prefix + name, held[name])


class _Builder:
    def __init__(self, graph: Graph, sizes: Sequence[int], spans: Sequence[bool], root: nn.Module) -> None:
        self.source, self.sizes, self.root = graph, sizes, root
        self.skipped = graph.skipped(spans)
        self.patches: dict[str, list[tuple[int, Patch]]] = {}
        for i, patch in enumerate(graph.patches):
            self.patches.setdefault(patch.node, []).append((i, patch))
        self.shortcut = {span.merge: span.shortcut for i, span in enumerate(graph.spans) if i in self.skipped}
        self.overwriting = overwriting(graph.program)
        self.graph = fx.Graph()
        self.env: dict[str, Any] = {}

    def build(self, used: set[str]) -> fx.Graph:
        self._inputs()
        waiting: list[Node] = []
        for node in self.source.program:
            if waiting and node.kind == "call" and not node.live:
                self._training_only(waiting)
                waiting = []
            if node.kind == "input":
                continue
            if not self.source.is_needed(node.name, self.skipped):
                continue
            elif node.name in self.shortcut:
                self.env[node.name] = self.env[self.shortcut[node.name]]
            elif node.live:
                waiting.append(node)
            elif node.kind == "state":
                if node.target in used:
                    self.env[node.name] = self.graph.get_attr(node.target)
            else:
                self.env[node.name] = self._call(node)
        if waiting:
            self._training_only(waiting)
        self.graph.output(self._value(self.source.program.output))
        return self.graph

    def _inputs(self) -> None:
        """One placeholder for each argument of the example; tensors are taken out of nested ones."""
        program = self.source.program
        arguments = program.form.flat_arguments()
        optional = len(arguments)
        while optional and not slots(arguments[optional - 1][1]):
            optional -= 1  # constants at the end may be left out
        for i, (name, form, default) in enumerate(arguments):
            free = i >= optional and default is not ABSENT
            value = self.graph.placeholder(name, default_value=form if free else inspect.Signature.empty)
            self._take(value, form, name, [node.name for node in program.inputs])

    def _take(self, value: fx.Node, form: Any, where: str, names: Sequence[str]) -> None:
        parts = [*zip(form.keys, form.values, strict=True)] if isinstance(form, Fields) else parts_of(form)
        if isinstance(form, Slot):
            self.env[names[form.index]] = value
        elif parts is None or not parts:
            self.graph.call_function(must_be, (value, form, where))
        else:
            for key, part in parts:
                self._take(self.graph.call_function(part_of, (value, key)), part, f"{where}.{key}", names)

    def _training_only(self, nodes: Sequence[Node]) -> None:
        """Calls of training alone, in a module of their own that knows the mode."""
        inside = {node.name for node in nodes}
        outer = dict.fromkeys(ref.name for node in nodes for ref in refs((node.args, node.kwargs)))
        operands = [name for name in outer if name not in inside and name != TRAINING]
        others = [(n.args, n.kwargs) for n in self.source.program if n.name not in inside]
        read = {ref.name for ref in refs((others, self.source.program.output))}
        results = [node.name for node in nodes if node.name in read]
        child = copy.copy(self)
        child.graph = fx.Graph()
        child.env = {name: child.graph.placeholder(f"x{i}") for i, name in enumerate(operands)} | {TRAINING: True}
        for node in nodes:
            child.env[node.name] = child._call(node)
        child.graph.output(tuple(child.env[name] for name in results))
        path = self._attribute("training_only", TrainingOnly(fx.GraphModule(nn.Module(), child.graph), len(results)))
        out = self.graph.call_module(path, tuple(self.env[name] for name in operands))
        for i, name in enumerate(results):
            self.env[name] = self.graph.call_function(operator.getitem, (out, i))

    def _attribute(self, stem: str, value: Any) -> str:
        """Keep something at the root; its name."""
        name = next(n for i in count() if not hasattr(self.root, n := f"{stem}_{i}"))
        setattr(self.root, name, value)
        return name

    def _opaque(self, node: Node) -> fx.Node:
        path, (index, *operands) = node.target.removeprefix("module."), node.args
        call = self._attribute("opaque_call", self.source.program.opaque[path].calls[index])
        given = [self.graph.get_attr(path), self.graph.get_attr(call), *(self._value(operand) for operand in operands)]
        return self.graph.call_function(call_opaque, tuple(given))

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
        if node.target.startswith("module."):
            return self._opaque(node)
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
        called: Any = method_of(node) or function_of(node)
        if self.overwriting.get(node.name, "") not in ("", *self.shortcut):
            called = in_place_of(node)
        emit = self.graph.call_method if isinstance(called, str) else self.graph.call_function
        return emit(called, tuple(args), kwargs)


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
            args, kwargs = map_tensors(lambda tensor: tensor.to(device), as_call(batch))
            try:
                given = inspect.signature(module.forward).bind(*args, **kwargs)
            except TypeError as error:
                got = f"{len(args)} inputs and {sorted(kwargs)}"
                raise PliantError(
                    f"a batch to calibrate with holds {got}, the network takes {places} ({error})"
                ) from error
            given.apply_defaults()
            statistics.run(*given.args, *given.kwargs.values())
            statistics.batches += 1
    module.train(mode)
    if not statistics.batches:
        raise PliantError("no batches to estimate BatchNorm statistics from", fix="give calibrate at least one batch")
    buffers = dict(module.named_buffers())
    for name, total in statistics.sums.items():
        buffers[name].copy_(total / statistics.calls[name])
