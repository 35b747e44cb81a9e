"""One width of a one-pass network as a plain module."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pliant.core.parts import Index, part_of
from pliant.elastic.extract import extract_module
from pliant.elastic.onepass.operators import prefix_norm
from pliant.elastic.onepass.places import Head, Mix, Norm
from pliant.elastic.operators import function_of

if TYPE_CHECKING:
    from pliant.elastic.onepass.network import OnePass


def extracted(net: "OnePass", width: int) -> nn.Module:
    """An `fx.GraphModule` of a width; its normalisations hold the shares of their shells as buffers."""
    graph = net.graph
    states = _states(net, width)
    sizes = [patch.value(net.shells.counts(width)) for patch in graph.patches]
    module = extract_module(graph, states, sizes, [True] * len(graph.spans), net.name)
    _normalise(net, width, module)
    return module.train(net.training)


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
    module.recompile()


def _affine(call: fx.Node) -> tuple[Any, Any]:
    """Weight and bias of a normalisation, None where it has none."""
    weight, bias = [*call.args[2:4], None, None][:2]
    if "rms" in str(call.target):
        bias = None  # its fourth argument is another
    return call.kwargs.get("weight", weight), call.kwargs.get("bias", bias)
