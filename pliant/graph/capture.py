"""Capture: from any `nn.Module` to a program with a live `training` flag.

The module is exported twice, in training and in evaluation mode, because export follows Python branches on
`self.training`. Where both give the same operators, the training program is kept and every argument in which they
differ follows the live flag. Where they do not (stochastic depth, layer drop), the evaluation program is kept with its
dropout and normalisation flags live, and a note says so.
"""

import copy
import inspect
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, as_call, map_tensors, tensors_of
from pliant.core._torch_private import is_overload, rebuild
from pliant.graph.ir import (
    TRAINING,
    Named,
    Node,
    Program,
    Ref,
    is_mutable,
    may_alias,
    resolve_target,
    schema_names,
    substitute,
)

LIVE = ("train", "training", "use_input_stats")
"""Schema names of arguments that switch an operator between training and evaluation."""

_SKIP = ("_guards_fn", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range")
_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
_TORCH = os.path.dirname(torch.__file__)


def capture(model: nn.Module, example: Any) -> tuple[Program, list[str]]:
    """The program of a model and notes on what could not be kept.

    Args:
        model: any module; it is not changed.
        example: a tensor, a tuple (positional) or a dict (keyword); axis 0 is the batch where all sizes agree.

    Raises:
        PliantError: torch.export refuses the model; the message names the line of the user's code.
    """
    trained = was_training(model)
    try:
        evaluation = _export(_ready(model).eval(), example)
        training = _export(_ready(model).train(), example)
    except PliantError:
        if not trained:
            return _live_flags(_export(_ready(model).eval(), example)).without_dead(), [_NOTE]
        raise
    merged = _merge(training, evaluation)
    if merged is not None:
        return merged.without_dead(), []
    return _live_flags(evaluation).without_dead(), [_NOTE]


_NOTE = (
    "training and evaluation run different operators; the evaluation graph is used in both modes, "
    "with dropout and normalisation live but without other training-only branches"
)


def _ready(model: nn.Module) -> nn.Module:
    """A copy that returns tensors only: Hugging Face models give out their key/value cache unless told not to."""
    model = copy.deepcopy(model)
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False  # type: ignore[union-attr]
    return model


def was_training(model: nn.Module) -> bool:
    """Whether any part of a model is in training mode."""
    return any(module.training for module in model.modules())


def two_rows(example: Any) -> Any:
    """The example with at least two rows, because export bakes a batch of one into the graph."""
    tensors = tensors_of(example)
    if tensors and all(tensor.dim() > 0 and tensor.shape[0] == 1 for tensor in tensors):
        return map_tensors(lambda tensor: torch.cat([tensor, tensor]), example)
    return example


def _dynamic(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {0: torch.export.Dim.AUTO} if value.dim() else {}
    if isinstance(value, tuple | list):
        return type(value)(_dynamic(item) for item in value)
    if isinstance(value, dict):
        return {key: _dynamic(item) for key, item in value.items()}
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter: what goes wrong is told by the error."""
    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # export prints half-made graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _export(model: nn.Module, example: Any) -> Program:
    args, kwargs = as_call(example)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise PliantError(f"the example does not fit forward ({error})", where=type(model).__name__) from error
    shapes = {name: _dynamic(value) for name, value in bound.items()}
    try:
        with _quiet():
            exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            module = exported.module()
    except Exception as error:  # torch raises many kinds here; every one is re-raised with the user's line
        raise _refusal(error) from error
    return _Converter(model, module).program(exported)


def _refusal(error: Exception) -> PliantError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_TORCH)]
    frames = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<")]
    where = f"{frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else None
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return PliantError(
            "this line decides by the values of a tensor, so the network is not one graph",
            where=where,
            fix="trace the part without the decision, or write it with torch.where",
        )
    fix = "check that model(example) runs; tensors must come in as arguments and sizes must not depend on values"
    return PliantError(
        f"torch.export cannot trace this network ({type(error).__name__}: {text[:300]})", where=where, fix=fix
    )


class _Converter:
    """fx graph to program: inlined, functional, with sources."""

    def __init__(self, model: nn.Module, module: nn.Module) -> None:
        self.model, self.module = model, module
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.seen: set[str] = {TRAINING}

    def program(self, exported: Any) -> Program:
        value = self._graph(self.module, self.module.graph, None, "")
        leaves = list(value)
        output = rebuild(leaves, exported.call_spec.out_spec, Named)
        return Program(self.nodes, output, self.constants)

    def _name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.seen:
            name, count = f"{wanted}_{count}", count + 1
        self.seen.add(name)
        return name

    def _graph(self, owner: nn.Module, graph: Any, inputs: list[Any] | None, module: str) -> Any:
        """Append the nodes of an fx graph; returns the value(s) of its output."""
        env: dict[Any, Any] = {}
        pending = list(inputs) if inputs is not None else None
        for fx in graph.nodes:
            if fx.op == "placeholder":
                env[fx] = pending.pop(0) if pending is not None else self._add(fx, "input", fx.target)
            elif fx.op == "get_attr":
                found = _attribute(owner, fx.target)
                if isinstance(found, Tensor) and not _has(self.model, fx.target):
                    self.constants[fx.target] = found.detach()  # made by the export
                env[fx] = found if isinstance(found, nn.Module) else self._add(fx, "state", fx.target)
            elif fx.op == "output":
                return torch.fx.map_arg(fx.args[0], lambda used: env[used])
            elif any(skip in str(fx.target) for skip in _SKIP):
                continue
            else:
                env[fx] = self._call(fx, env)
        return None

    def _add(self, fx: Any, kind: str, target: str) -> Ref:
        node = Node(self._name(fx.name if kind != "input" else target), kind, target)
        self.nodes.append(node)
        return Ref(node.name)

    def _call(self, fx: Any, env: dict[Any, Any]) -> Any:
        args = _plain(fx.args, env)
        kwargs = _plain(fx.kwargs, env)
        kind = str(fx.target)
        if "wrap_with_autocast" in kind and args[2]:
            raise PliantError(
                "autocast inside a network would be lost",
                where=_line(fx) or None,
                fix="put torch.autocast around the call of the network instead",
            )
        if "wrap_with_set_grad_enabled" in kind or "wrap_with_autocast" in kind:
            skip = 2 if "set_grad" in kind else 5
            inner = args[skip - 1]
            values = self._graph(inner, inner.graph, list(args[skip:]), "")
            if "set_grad" in kind and args[0] is False:
                values = [self._detached(value) for value in values]
            return tuple(values)
        if (
            fx.target is torch.ops.higher_order.__dict__.get("cond")
            or fx.op != "call_function"
            or "higher_order" in kind
        ):
            raise PliantError(
                f"the operator {kind} is control flow inside the graph",
                where=_line(fx) or None,
                fix="trace one branch on its own",
            )
        if kind == "<built-in function getitem>" and isinstance(args[0], tuple | list):
            return args[0][args[1]]
        node = Node(self._name(fx.name), "call", _target_name(fx.target), tuple(args), kwargs, _path(fx), _line(fx))
        return self._functional(node, fx, env)

    def _detached(self, value: Any) -> Any:
        if not isinstance(value, Ref):
            return value
        node = Node(self._name(value.name + "_detached"), "call", "aten.detach.default", (value,))
        self.nodes.append(node)
        return Ref(node.name)

    def _functional(self, node: Node, fx: Any, env: dict[Any, Any]) -> Ref:
        """In-place operators on activations become functional ones; writes to state stay as they are.

        So do writes whose effect is seen through another view later on: their labels are fixed by the rules.
        """
        self.nodes.append(node)
        written = node.args[0] if node.args else None
        if not is_mutable(node.target) or not isinstance(written, Ref) or not node.packet.endswith("_"):
            return Ref(node.name)
        by_name = {other.name: other for other in self.nodes}
        functional = f"{node.packet[:-1]}.{node.target.rpartition('.')[2]}"
        root = by_name[written.name]
        while root.kind == "call" and may_alias(root.target) and isinstance(root.args[0], Ref):
            root = by_name[root.args[0].name]
        if root.kind == "state" or not _exists(functional) or _seen_elsewhere(fx, written, env):
            return Ref(node.name)
        node.target, node.in_place = functional, True
        for key, value in list(env.items()):
            if value == written:
                env[key] = Ref(node.name)
        return Ref(node.name)


def _seen_elsewhere(fx: Any, written: Ref, env: dict[Any, Any]) -> bool:
    """Whether memory that a call writes to is read after it under another name than `written`."""
    order = {node: i for i, node in enumerate(fx.graph.nodes)}

    def root(node: Any) -> Any:
        while node.op == "call_function" and is_overload(node.target) and may_alias(_target_name(node.target)):
            if not isinstance(node.args[0], torch.fx.Node):
                break
            node = node.args[0]
        return node

    own = root(fx.args[0])
    aliases = [node for node in order if node is not fx and order[node] < order[fx] and root(node) is own]
    return any(order[user] > order[fx] for node in aliases if env.get(node) != written for user in node.users)


def _exists(target: str) -> bool:
    try:
        resolve_target(target)
    except PliantError:
        return False
    return True


def _plain(value: Any, env: dict[Any, Any]) -> Any:
    mapped = torch.fx.map_arg(value, lambda used: env[used])
    return _immutable_to_plain(mapped)


def _immutable_to_plain(value: Any) -> Any:
    if isinstance(value, Ref | Named):
        return value
    if isinstance(value, tuple):
        return tuple(_immutable_to_plain(item) for item in value)
    if isinstance(value, list):
        return [_immutable_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _immutable_to_plain(item) for key, item in value.items()}
    return value


def _has(owner: nn.Module, path: str) -> bool:
    try:
        _attribute(owner, path)
    except AttributeError:
        return False
    return True


def _attribute(owner: nn.Module, path: str) -> Any:
    found: Any = owner
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _target_name(target: Any) -> str:
    if is_overload(target):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    name = getattr(target, "__name__", str(target))
    if module in ("_operator", "operator"):
        return f"operator.{name}"
    return f"torch.{name}"


def _path(fx: Any) -> str:
    stack = fx.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values()]
    path = paths[-1] if paths else ""
    return "" if path.startswith("_empty_nn_module") else path.removeprefix("L['self'].")


def _line(fx: Any) -> str:
    lines = (fx.meta.get("stack_trace") or "").strip().splitlines()
    frames = [(lines[i].strip(), lines[i + 1].strip()) for i in range(0, len(lines) - 1, 2)]
    users = [frame for frame in frames if _TORCH not in frame[0]] or frames
    if not users:
        return ""
    place, code = users[-1]
    parts = place.split('"')
    number = place.partition("line ")[2].partition(",")[0]
    return f"{os.path.basename(parts[1]) if len(parts) > 1 else '?'}:{number}: {code}"


def _counters(program: Program) -> dict[str, str]:
    """Calls that add one to a state, as batch normalisations count their batches: node to name of the state."""
    states = {node.name: node.target for node in program.states}
    return {
        node.name: states[node.args[0].name]
        for node in program
        if node.packet == "aten.add_" and node.args[1:] == (1,) and node.args[0].name in states
    }


def _significant(program: Program) -> list[Node]:
    """Calls that must agree between the two modes."""
    counters = _counters(program)
    return [
        node
        for node in program
        if node.kind == "call" and node.packet != "aten.contiguous" and node.name not in counters
    ]


def _places(program: Program) -> dict[str, Any]:
    """What each node is, in words that mean the same in both modes' programs."""
    places: dict[str, Any] = {TRAINING: TRAINING}
    for i, node in enumerate(_significant(program)):
        places[node.name] = i
    counters = _counters(program)
    for node in program:
        if node.name in counters:
            places[node.name] = ("state", counters[node.name])
        elif node.kind != "call":
            places[node.name] = (node.kind, node.target)
        elif node.packet == "aten.contiguous":
            places[node.name] = places[node.args[0].name]
    return places


def _by_name(node: Node) -> dict[str, Any]:
    """A call's arguments by schema name (by position where there is no schema), defaults filled in."""
    schema = getattr(resolve_target(node.target), "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)} | node.kwargs
    filled = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return filled | dict(zip(schema_names(node.target), node.args, strict=False)) | node.kwargs


def _set(node: Node, name: str, value: Any) -> None:
    """Give an argument by its schema name, in the place where it stands."""
    names = schema_names(node.target)
    if name in names and names.index(name) < len(node.args):
        i = names.index(name)
        node.args = (*node.args[:i], value, *node.args[i + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def _merge(training: Program, evaluation: Program) -> Program | None:
    """The training program with every differing flag live, or None where the programs differ otherwise."""
    first, second = _significant(training), _significant(evaluation)
    if [node.target for node in first] != [node.target for node in second]:
        return None
    ours, theirs = _places(training), _places(evaluation)

    def same(one: Any, other: Any) -> bool:
        placed = substitute(one, lambda ref: (Ref, ours[ref.name]))
        return bool(placed == substitute(other, lambda ref: (Ref, theirs[ref.name])))

    alike = all(
        torch.equal(tensor, evaluation.constants.get(name, torch.empty(0)))
        for name, tensor in training.constants.items()
    )
    if not alike or not same(training.output, evaluation.output) or not _live_counts(training, evaluation):
        return None
    scaled: dict[str, list[Node]] = {}
    for node, other in zip(first, second, strict=True):
        mine, its = _by_name(node), _by_name(other)
        for name in mine.keys() | its.keys():
            value, also = mine.get(name), its.get(name)
            if same(value, also):
                continue
            if name in LIVE and value is True and also is False:
                _set(node, name, Ref(TRAINING))
            elif isinstance(value, float) and also == 0.0:
                extra = Node(f"{node.name}_p", "call", "operator.mul", (value, Ref(TRAINING)))
                scaled.setdefault(node.name, []).append(extra)
                _set(node, name, Ref(extra.name))
            else:
                return None
    nodes = [extra for node in training for extra in (*scaled.get(node.name, ()), node)]
    return Program(nodes, training.output, training.constants)


def _live_counts(training: Program, evaluation: Program) -> bool:
    """Let counters that only training advances follow the live flag. False where evaluation has some of its own."""
    left, counters = list(_counters(evaluation).values()), _counters(training)
    for node in training:
        if counters.get(node.name) in left:
            left.remove(counters[node.name])
        elif node.name in counters:
            node.args = (node.args[0], Ref(TRAINING))
    return not left


def _live_flags(program: Program) -> Program:
    """An evaluation program whose dropout and normalisation follow the live flag."""
    for node in program:
        if node.kind == "call":
            names = schema_names(node.target)
            args = [
                Ref(TRAINING) if i < len(names) and names[i] in LIVE and a is False else a
                for i, a in enumerate(node.args)
            ]
            node.args = tuple(args)
            node.kwargs = {k: Ref(TRAINING) if k in LIVE and v is False else v for k, v in node.kwargs.items()}
    return Program([substitute_node(node) for node in program], program.output, program.constants)


def substitute_node(node: Node) -> Node:
    """A copy of a node that shares nothing mutable."""
    args, kwargs = substitute((node.args, node.kwargs), lambda ref: ref)
    return Node(node.name, node.kind, node.target, args, kwargs, node.module, node.line, node.in_place)
