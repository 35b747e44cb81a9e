"""One width of a one-pass network, or all of them, as a plain module."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pliant.core import make_output
from pliant.core.parts import Index, part_of
from pliant.elastic.extract import extract_module
from pliant.elastic.onepass.operators import joined, prefix_norm
from pliant.elastic.onepass.places import Head, Mix, Norm
from pliant.elastic.operators import function_of

if TYPE_CHECKING:
    from pliant.elastic.onepass.network import OnePass


def extracted(net: "OnePass", width: int | None) -> nn.Module:
    """An `fx.GraphModule` of a width, or (None) of all; its normalisations hold the shares of their shells as buffers.

    That of all widths holds the weights of a head for every width one after the other, and what comes after the head
    once for each width.
    """
    graph, widest = net.graph, net.widths if width is None else width
    states = _states(net, widest) | (_rows(net) if width is None else {})
    sizes = [patch.value(net.shells.counts(widest)) for patch in graph.patches]
    module = extract_module(graph, states, sizes, [True] * len(graph.spans), net.name)
    _normalise(net, widest, module)
    if width is None:
        _split(net, module)
    module.recompile()
    return module.train(net.training)


def _heads(net: "OnePass") -> dict[str, Head]:
    """Heads by their weight."""
    return {step.weight: step for step in net.plan.steps if isinstance(step, Head)}


@torch.no_grad()
def _rows(net: "OnePass") -> dict[str, Tensor]:
    """Weights and biases of heads with the outputs of all widths one after the other."""
    found: dict[str, Tensor] = {}
    for weight, step in _heads(net).items():
        found[weight] = joined(net.state(weight) * net.constant(f"mask {step.node.name}"), step.layout[0])
        if step.bias is not None:
            found[step.bias] = net.state(step.bias).flatten().clone()
    return {name: nn.Parameter(tensor.contiguous(), net.state(name).requires_grad) for name, tensor in found.items()}


def _split(net: "OnePass", module: fx.GraphModule) -> None:
    """Take the results of heads apart, let what follows run for each width, and stack what comes out."""
    graph, heads = module.graph, _heads(net)
    each: dict[fx.Node, list[fx.Node]] = {}
    several: list[fx.Node] = []
    stacked: dict[fx.Node, fx.Node] = {}
    widths = range(net.widths)

    def column(node: fx.Node) -> fx.Node:
        if node.target is make_output:
            return node
        if node not in stacked:
            own = node in each
            stacked[node] = (graph.call_function(torch.stack, (each[node],)) if own else
                             graph.call_function(in_columns, (node, net.widths)))  # fmt: skip
        return stacked[node]

    def copy(node: fx.Node, k: int) -> fx.Node:
        new = graph.node_copy(node, lambda n: each[n][k] if n in each else n)
        if _writes_over(node) and node.args[0] in each:  # columns are views of one tensor
            with graph.inserting_before(new):
                new.update_arg(0, graph.call_method("clone", (new.args[0],)))
        return new

    for node in list(graph.nodes):
        weights = [heads[str(n.target)] for n in node.all_input_nodes if n.op == "get_attr" and n.target in heads]
        if node.op == "output" or node.target is make_output:
            with graph.inserting_before(node):
                node.args = fx.node.map_arg(node.args, column)
        elif weights:
            head, size = weights[0], net.graph.states[weights[0].weight].shape[weights[0].layout[0]]
            with graph.inserting_before(node.next):
                each[node] = [graph.call_function(torch.narrow, (node, head.axis, k * size, size)) for k in widths]
        elif any(operand in each for operand in node.all_input_nodes):
            with graph.inserting_before(node.next):
                each[node] = [copy(node, k) for k in widths]
            several.append(node)
    for node in reversed(several):
        graph.erase_node(node)
    graph.lint()


def _writes_over(node: fx.Node) -> bool:
    """Whether a call writes its result over its first operand."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    return node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")


def in_columns(value: Any, widths: int) -> Any:
    """What is the same in all widths, [S, ...]; values that are no tensors stay."""
    return torch.stack([value] * widths) if isinstance(value, Tensor) else value


@torch.no_grad()
def _states(net: "OnePass", width: int) -> dict[str, Tensor]:
    indices: dict[str, list[Index]] = {}
    for node in net.graph.program.states:
        value, dims = net.plan.values.get(node.name), net.graph.states[node.target].dim()
        axes = {} if value is None else value.axes
        indices[node.target] = [net.shells.index(axes[a], width) if a in axes else slice(None) for a in range(dims)]
    masks: dict[str, Tensor] = {}
    rows: set[str] = set()
    for step in net.plan.steps:
        if isinstance(step, Mix):
            origin = net.plan.values[step.weight].origin
            if origin is not None:
                mask = net.constant(f"mask {step.node.name}")
                masks[origin[0]] = mask.permute([origin[1].index(axis) for axis in range(mask.dim())])
        elif isinstance(step, Head):
            rows |= {name for name in (step.weight, step.bias) if name is not None}
    made: dict[int, Tensor] = {}
    found = {}
    for state, index in indices.items():
        tensor = net.state(state)
        whole = tensor.detach()
        if state in rows and whole.dim() > len(index):
            whole = whole[width - 1]
        part = part_of(whole * masks[state] if state in masks else whole, index).clone().contiguous()
        part = nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part
        found[state] = made.setdefault(id(tensor), part)
    return found


def _normalise(net: "OnePass", width: int, module: fx.GraphModule) -> None:
    """Put prefix normalisations in the places of those over shells."""
    program = [node for node in net.graph.program if node.packet in ("aten.layer_norm", "aten.rms_norm")]
    targets = [function_of(node) for node in program]
    calls = [call for call in module.graph.nodes if call.target in targets]
    steps = {step.node.name: step for step in net.plan.steps if isinstance(step, Norm)}
    for number, (node, call) in enumerate(zip(program, calls, strict=True)):
        step = steps.get(node.name)
        if step is None:
            continue
        index = net.shells.index(step.into, width)
        shells = part_of(net.constant(f"shells {node.name}")[:width], (slice(None), index)).clone()
        shares = net.constant(f"shares {node.name}")[:width, :width].clone()
        for name, tensor in (("shells", shells), ("shares", shares)):
            module.register_buffer(f"prefix_{name}_{number}", tensor, persistent=False)
        weight, bias = _affine(call)
        with module.graph.inserting_before(call):
            held = [module.graph.get_attr(f"prefix_{name}_{number}") for name in ("shells", "shares")]
            settings = (step.eps, step.centred, step.even or width == 1)
            new = module.graph.call_function(prefix_norm, (call.args[0], *held, weight, bias, *settings))
        call.replace_all_uses_with(new)
        module.graph.erase_node(call)


def _affine(call: fx.Node) -> tuple[Any, Any]:
    """Weight and bias of a normalisation, None where it has none."""
    weight, bias = [*call.args[2:4], None, None][:2]
    if "rms" in str(call.target):
        bias = None  # its fourth argument is another
    return call.kwargs.get("weight", weight), call.kwargs.get("bias", bias)
