"""Laws: what must hold for every network that is made elastic.

Each law is a function of a `Subject`. It returns a line with the figures it found, or raises `LawBroken`. `check` runs
them on a network of your own:

    from pliant.testing import Subject, check
    for verdict in check(Subject("mine", make, example)):
        print(verdict)

The `torch` random state is left as it was by every law.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pliant.core import Config, PliantError, as_call, call, seeded, tensors_of
from pliant.elastic import Elastic, elastic
from pliant.elastic.order import PermutationCheck, cycles
from pliant.elastic.recipes import Nested
from pliant.export import to_onnx
from pliant.graph.labels import IntArray
from pliant.testing.interpret import interpret
from pliant.testing.subject import Case, LawBroken, Subject, case_of, gap

Law = Callable[[Subject], str]
LAWS: dict[str, Law] = {}
"""Name -> law, in the order in which `check` runs them."""

CLOSE = 1e-6
"""Largest relative difference in single precision between two ways of computing the same thing."""


class _Court:
    """Raises `LawBroken` for one law on one network."""

    def __init__(self, network: str, law: str) -> None:
        self._network, self._law = network, law

    def demand(self, holds: bool, figures: str) -> None:
        if not holds:
            raise LawBroken(self._network, self._law, figures)

    def close(self, got: object, wanted: object, what: str, tolerance: float = CLOSE) -> float:
        found = gap(got, wanted)
        self.demand(found <= tolerance, f"{what} differ by {found:.3g} (relative), allowed {tolerance:.0e}")
        return found

    def refuses(self, kind: type[Exception], action: Callable[[], object], what: str, *words: str) -> None:
        """`action` raises `kind` with one line that holds `words`."""
        try:
            action()
        except kind as error:
            text = str(error)
            missing = [word for word in words if word not in text]
            self.demand("\n" not in text and bool(text), f"{what}: the message has several lines or none: {text!r}")
            self.demand(not missing, f"{what}: the message does not name {', '.join(missing)}: {text!r}")
        else:
            self.demand(False, f"{what} is accepted; {kind.__name__} expected")


def law(fn: Callable[[Case, Subject, _Court], str]) -> Law:
    """Enter a law under its function's name."""

    @wraps(fn)
    def run(subject: Subject) -> str:
        with torch.random.fork_rng(devices=[]):
            return fn(case_of(subject), subject, _Court(subject.name, fn.__name__))

    LAWS[fn.__name__] = run
    return run


def _configs(net: Elastic, random: int) -> list[Config]:
    """The smallest, the largest and some random sub-networks, without repetition."""
    generator = seeded(0, "laws")
    drawn = [net.space.smallest(), net.space.largest(), *(net.sample(generator) for _ in range(random))]
    return list(dict.fromkeys(drawn))


def _run(net: nn.Module, example: Any) -> Any:
    """The output under a fixed seed, so that dropout draws the same."""
    torch.manual_seed(1)
    return call(net, example)


def _loss(output: Any) -> Tensor:
    return torch.stack([t.square().mean() for t in tensors_of(output) if t.is_floating_point()]).sum()


def _mask(shape: Sequence[int], ranges: Sequence[Any]) -> Tensor:
    """Where a sub-network reads a full-size tensor."""
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for axis, runs in enumerate(ranges):
        if runs is not None:
            line = torch.zeros(shape[axis], dtype=torch.bool)
            for begin, end in runs:
                line[begin:end] = True
            mask &= line.view([-1 if a == axis else 1 for a in range(len(shape))])
    return mask


def _masks(net: Elastic, config: Config) -> dict[str, Tensor]:
    """For every entry of the state dict, where `config` reads it; nowhere, where it does not use it."""
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name, ranges in net.sources(config).values():
        if name in shapes:
            masks[name] = masks[name] | _mask(shapes[name], ranges)
    return masks


@law
def input_unchanged(case: Case, subject: Subject, court: _Court) -> str:
    """Making a network elastic changes neither it nor torch's random state."""
    court.demand(not case.changes, f"changed: {', '.join(case.changes[:5])}")
    return "nothing changed"


@law
def widest_equals_original(case: Case, subject: Subject, court: _Court) -> str:
    """The whole family member computes what the original does, in both modes; statistics are equal afterwards."""
    net, model, worst = copy.deepcopy(case.family), copy.deepcopy(case.model), 0.0
    notes = net.graph.notes  # what the trace owns up to: training-only branches are gone
    for training in (False, True)[: 1 if notes else 2]:
        mode = "training" if training else "evaluation"
        net.train(training)
        model.train(training)
        worst = max(worst, court.close(_run(net, case.example), _run(model, case.example), f"outputs in {mode}"))
        theirs = model.state_dict()
        for name, tensor in net.state_dict().items():
            if name in theirs:
                worst = max(worst, court.close(tensor, theirs[name], f"{name} after {mode}"))
    return f"largest difference {worst:.2g}{' in evaluation; ' if notes else ''}{'; '.join(notes)}"


@law
def sliced_equals_extracted(case: Case, subject: Subject, court: _Court) -> str:
    """Running a slice equals running the module taken out: outputs, statistics and gradients, in both modes."""
    net, worst = copy.deepcopy(case.family), 0.0
    configs = _configs(net, 3)
    for config in configs:
        small = net.extract(config)
        for training in (False, True):
            net.train(training)
            small.train(training)
            net.zero_grad()
            small.zero_grad()
            before = {name: buffer.clone() for name, buffer in net.named_buffers()}
            with net.using(config):
                mine = _run(net, case.example)
            other = _run(small, case.example)
            what = f"outputs in {'training' if training else 'evaluation'} of {dict(config)}"
            worst = max(worst, court.close(mine, other, what))
            for loss in (_loss(mine), _loss(other)):
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            worst = max(worst, _compare_parts(net, small, config, court, before))
    return f"largest difference {worst:.2g} over {len(configs)} sub-networks"


def _grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _compare_parts(
    net: Elastic, small: nn.Module, config: Config, court: _Court, before: Mapping[str, Tensor]
) -> float:
    """Gradients and statistics of the module taken out equal the slices; outside there is nothing."""
    masks, worst = _masks(net, config), 0.0
    inner = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in net.named_parameters():
        mask = masks[name]
        grad = _grad(parameter)
        court.demand(not grad[~mask].any(), f"gradient of {name} outside the slices of {dict(config)}")
        if name in inner:
            what = f"gradients of {name} in {dict(config)}"
            worst = max(worst, court.close(grad[mask], _grad(inner[name]).reshape(-1), what, 1e-5))
    theirs = dict(small.named_buffers())
    for name, buffer in net.named_buffers():
        if name in masks:
            inside = masks[name]
            court.demand(torch.equal(buffer[~inside], before[name][~inside]), f"{name} moved outside {dict(config)}")
            if name in theirs:
                worst = max(worst, court.close(buffer[inside], theirs[name].reshape(-1), f"statistics {name}"))
    return worst


@law
def extracted_equals_onnx(case: Case, subject: Subject, court: _Court) -> str:
    """The module taken out, exported to ONNX and run by onnxruntime, computes the same at several batch sizes."""
    net, worst = case.family, 0.0
    configs = dict.fromkeys([net.space.smallest(), net.sample(seeded(0, "onnx"))])
    for config in configs:
        small = net.extract(config).eval()
        try:
            model = to_onnx(small, case.example, tolerance=1e-4)
        except PliantError as error:
            court.demand(False, f"{dict(config)}: {error}")
        with torch.no_grad():
            court.close(model.run(case.example), call(small, case.example), f"outputs of {dict(config)}", 1e-4)
        worst = max(worst, model.errors["max_rel"])
    return f"largest difference {worst:.2g} over {len(configs)} sub-networks"


def _orders(net: Elastic) -> dict[int, IntArray]:
    """For each group that may bend a new order in which no unit keeps its place."""
    return {g: order for g, order in cycles(net.graph.analysis.units).items() if g not in net.dropped}


@law
def permutation(case: Case, subject: Subject, court: _Court) -> str:
    """In double precision the output does not change when all units change places, group by group and all at once."""
    graph = case.family.graph
    checker, permutations = PermutationCheck(graph), _orders(case.family)
    worst = checker.error(permutations) if permutations else 0.0
    court.demand(worst <= 1e-9, f"all groups at once: output changes by {worst:.3g}")
    for g, order in permutations.items():
        court.demand(bool((order != np.arange(len(order))).all()), f"{graph.groups[g].name}: a unit stays in its place")
        error = checker.error({g: order})
        court.demand(error <= 1e-9, f"{graph.groups[g].name}: output changes by {error:.3g}")
        worst = max(worst, error)
    return f"largest change {worst:.2g} over {len(permutations)} groups"


@law
def leave_one_axis_out(case: Case, subject: Subject, court: _Court) -> str:
    """The control of `permutation`: wherever a group reaches, leaving that one axis in its old order shows."""
    graph = case.family.graph
    checker, silent, least, count = PermutationCheck(graph), [], float("inf"), 0
    for g, order in _orders(case.family).items():
        where = graph.groups[g].where
        for name, axis in where if len(where) > 1 else ():  # one place alone has nothing to be out of step with
            error, count = checker.error({g: order}, leave=(name, axis)), count + 1
            if error > 1e-12:
                least = min(least, error)
            elif f"{name}[{axis}]" not in subject.silent:
                silent.append(f"{name}[{axis}] of {graph.groups[g].name}")
    court.demand(not silent, f"{len(silent)} of {count} axes are silent: {', '.join(silent)}")
    return f"{count} axes react, the least by {least:.2g}" if count else "no axes"


@law
def slices_only(case: Case, subject: Subject, court: _Court) -> str:
    """Ten AdamW steps with weight decay on one small sub-network leave all else bit-identical, the optimizer too."""
    net = copy.deepcopy(case.family).train()
    spans = [name for name in net.graph.span_names if name in {knob.name for knob in net.space}]
    config = net.space.smallest().replace(dict.fromkeys(spans[1:], True))
    masks, before = _masks(net, config), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        with net.using(config):
            _loss(call(net, case.example)).backward()  # type: ignore[no-untyped-call]
        Nested().update(net, optimizer)
        optimizer.zero_grad()
    moved = 0
    for name, tensor in net.state_dict().items():
        outside = ~masks[name]
        court.demand(torch.equal(tensor[outside], before[name][outside]), f"{name} moved outside {dict(config)}")
        moved += int((tensor != before[name]).sum())
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                court.demand(not value[~masks[name]].any(), f"AdamW's {key} of {name} outside {dict(config)}")
    court.demand(moved > 0, "nothing moved at all")
    return f"{moved} entries moved, {sum(int((~mask).sum()) for mask in masks.values())} outside stayed"


_NOT_COUNTED = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "aten.bilinear", "aten.mv", "aten.dot",
                "aten.vdot")  # fmt: skip
"""Operators that torch's counter does not see."""


@law
def cost_falls(case: Case, subject: Subject, court: _Court) -> str:
    """The smallest member costs less than the largest; parameters are the true count, FLOPs those that torch counts."""
    net = case.family
    least, most = net.cost(net.space.smallest()), net.cost(net.space.largest())
    if net.space.size > 1:
        court.demand(least.parameters < most.parameters, f"parameters {least.parameters} to {most.parameters}")
        court.demand(least.flops < most.flops, f"FLOPs {least.flops} to {most.flops}")
    for config in _configs(net, 2):
        small, said = net.extract(config), net.cost(config)
        true = sum(p.numel() for p in small.parameters())
        court.demand(said.parameters == true, f"{said.parameters} parameters said of {dict(config)}, {true} there")
        size = sum(p.numel() * p.element_size() for p in small.parameters())
        court.demand(said.bytes == size, f"{said.bytes} bytes said of {dict(config)}, {size} there")
        if not any(node.packet in _NOT_COUNTED for node in net.graph.program):
            counted = _counted_flops(small, case.example)
            court.demand(abs(said.flops - counted) <= 0.01 * counted,
                         f"{said.flops} FLOPs said of {dict(config)}, torch counts {counted:.0f}")  # fmt: skip
    if not any(node.packet in _NOT_COUNTED for node in net.graph.program):
        counted = _counted_flops(case.model, case.example)
        court.demand(abs(most.flops - counted) <= 0.01 * counted, f"{most.flops} FLOPs, torch counts {counted:.0f}")
    return f"FLOPs {least.flops} to {most.flops}, parameters {least.parameters} to {most.parameters}"


def _counted_flops(net: nn.Module, example: Any) -> float:
    """FLOPs of one sample by torch's own counter; attention is run in its plain form, which the counter knows."""
    net = copy.deepcopy(net).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(net, example)
    return float(counter.get_total_flops()) / len(tensors_of(example)[0])


@law
def save_load(case: Case, subject: Subject, court: _Court) -> str:
    """What was saved comes back the same, made of plain modules: spaces, states, flags, outputs."""
    net = copy.deepcopy(case.family)
    config = net.sample(seeded(0, "save"))
    net.activate(config)
    with tempfile.TemporaryDirectory() as folder:
        net.save(Path(folder) / "net")
        back = Elastic.load(Path(folder) / "net")
    court.demand(back.space == net.space, f"{back.space} came back for {net.space}")
    court.demand((back.name, back.active) == (net.name, config), f"{back.name}, {back.active} came back")
    court.demand(back.graph.span_names == net.graph.span_names, f"spans {back.graph.span_names} came back")
    court.demand(back.training == net.training, f"training={back.training} came back for {net.training}")
    strangers = {type(module) for module in back.modules()} - {Elastic, nn.Module}
    court.demand(not strangers, f"the loaded network needs {strangers}")
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    court.demand(flags == {name: p.requires_grad for name, p in back.named_parameters()}, "requires_grad differs")
    court.demand(list(net.state_dict()) == list(back.state_dict()), "names of the state dict differ")
    court.demand(gap(net.state_dict(), back.state_dict()) == 0.0, "the state dict differs")
    for training in (False, True):
        for choice in _configs(net, 1):
            net.train(training)
            back.train(training)
            with net.using(choice), back.using(choice):
                court.close(_run(back, case.example), _run(net, case.example), f"outputs of {dict(choice)}", 0.0)
                court.demand(back.cost(choice) == net.cost(choice), f"cost of {dict(choice)}: {back.cost(choice)}")
    return f"{len(flags)} parameters, outputs equal"


@law
def deterministic(case: Case, subject: Subject, court: _Court) -> str:
    """Made elastic twice, a network gives the same groups, knobs, draws and outputs."""
    one, two = case.family, elastic(subject.make(), subject.example())
    court.demand(one.space == two.space, f"{one.space} and {two.space}")
    court.demand(one.graph.groups == two.graph.groups, "groups differ")
    court.demand(one.graph.spans == two.graph.spans, "spans differ")
    draws = [[net.sample(generator) for _ in range(5)] for net in (one, two) for generator in [seeded(3, "draws")]]
    court.demand(draws[0] == draws[1], f"draws differ: {draws}")
    with torch.no_grad():
        for config in (one.space.largest(), draws[0][0]):
            outputs = [_run(net.extract(config).eval(), case.example) for net in (one, two)]
            court.close(outputs[0], outputs[1], f"outputs of {dict(config)}", 0.0)
    return f"{len(one.space)} knobs, equal"


@law
def depth_skips(case: Case, subject: Subject, court: _Court) -> str:
    """Leaving a span out equals adding zeros for its branch, and its own parameters are gone."""
    net, worst = copy.deepcopy(case.family).eval(), 0.0
    kinds = {node.name: node for node in net.graph.program}
    for name, span in zip(net.graph.span_names, net.graph.spans, strict=True):
        if name not in {knob.name for knob in net.space}:
            continue
        config = net.space.largest().replace({name: False})
        small = net.extract(config)
        own = {kinds[n].target for n in span.nodes if kinds[n].kind == "state"}
        left, whole = set(small.state_dict()), set(net.state_dict())
        court.demand(whole - left == own & whole, f"{name}: {sorted(whole - left)} left out, its own are {sorted(own)}")
        with torch.no_grad(), net.using(config):
            wanted = interpret(net.graph, case.example, zeroed=span.branch)
            worst = max(worst, court.close(call(net, case.example), wanted, f"{name}: sliced and reference outputs"))
            worst = max(
                worst, court.close(call(small, case.example), wanted, f"{name}: extracted and reference outputs")
            )
    return f"largest difference {worst:.2g} over {len(net.graph.spans)} spans"


@law
def bad_input(case: Case, subject: Subject, court: _Court) -> str:
    """Wrong calls raise the named error, with one line that says what was wrong."""
    net = case.family
    args, kwargs = as_call(case.example)
    values = [*args, *kwargs.values()]
    court.refuses(TypeError, lambda: net(*values, values[0]), "one input too many")
    court.refuses(TypeError, lambda: net(), "no input")
    court.refuses(TypeError, lambda: net(nonsense=values[0]), "an unknown input", "nonsense")
    unknown = {"width:nonsense": 1}
    for action in (net.activate, net.extract, net.cost, net.sources, lambda c: net.using(c).__enter__()):
        court.refuses(ValueError, lambda action=action: action(unknown), "an unknown knob", "width:nonsense")  # type: ignore[misc]
    for knob in net.space:
        wrong = {knob.name: 10**6}
        court.refuses(ValueError, lambda wrong=wrong: net.activate(wrong), "a wrong choice", knob.name, "1000000")  # type: ignore[misc]
    court.refuses(ValueError, lambda: elastic(case.model, case.example, min_size=0), "min_size=0", "min_size", "0")
    court.refuses(TypeError, lambda: elastic(net, case.example), "a network that is elastic already", "elastic")
    court.refuses(TypeError, lambda: elastic(case.model.forward, case.example), "a function", "nn.Module")  # type: ignore[arg-type]
    return "every error has its name and one line"
