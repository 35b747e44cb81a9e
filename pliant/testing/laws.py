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
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core import Config, PliantError, as_call, call, seeded
from pliant.elastic import Elastic, elastic, one_pass
from pliant.elastic.order import PermutationCheck, reorderings
from pliant.elastic.recipes import Nested
from pliant.elastic.statistics import Uncalibrated
from pliant.export import to_onnx
from pliant.graph.labels import IntArray
from pliant.testing.court import (
    NOT_COUNTED,
    Court,
    compare_gradients,
    compare_parts,
    counted_flops,
    loss_of,
    masks_of,
    run_seeded,
)
from pliant.testing.interpret import interpret
from pliant.testing.prefixes import is_repeatable, prefixes_run, prefixes_train
from pliant.testing.subject import Case, Subject, case_of, gap

Law = Callable[[Subject], str]
LAWS: dict[str, Law] = {}
"""Name -> law, in the order in which `check` runs them."""


def law(fn: Callable[[Case, Subject, Court], str]) -> Law:
    """Enter a law under its function's name."""

    @wraps(fn)
    def run(subject: Subject) -> str:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", Uncalibrated)  # laws compare cut networks with each other, as they are
            return fn(case_of(subject), subject, Court(subject.name, fn.__name__))

    LAWS[fn.__name__] = run
    return run


def _configs(net: Elastic, random: int) -> list[Config]:
    """The smallest, the largest and some random sub-networks, without repetition."""
    generator = seeded(0, "laws")
    drawn = [net.space.smallest(), net.space.largest(), *(net.sample(generator) for _ in range(random))]
    return list(dict.fromkeys(drawn))


@law
def input_unchanged(case: Case, subject: Subject, court: Court) -> str:
    """Making a network elastic changes neither it nor torch's random state."""
    court.demand(not case.changes, f"changed: {', '.join(case.changes[:5])}")
    return "nothing changed"


@law
def widest_equals_original(case: Case, subject: Subject, court: Court) -> str:
    """The whole family member computes what the original does, in both modes, and passes back the same gradients.

    Statistics are equal afterwards."""
    net, model, worst = copy.deepcopy(case.family), copy.deepcopy(case.model), 0.0
    notes = net.graph.notes  # what the trace owns up to: training-only branches are gone
    for training in (False, True)[: 1 if notes else 2]:
        mode = "training" if training else "evaluation"
        net.train(training)
        model.train(training)
        mine, other = run_seeded(net, case.example), run_seeded(model, case.example)
        worst = max(worst, court.close(mine, other, f"outputs in {mode}"))
        worst = max(worst, compare_gradients(net, model, (mine, other), mode, court))
        theirs = model.state_dict()
        for name, tensor in net.state_dict().items():
            if name in theirs:
                worst = max(worst, court.close(tensor, theirs[name], f"{name} after {mode}"))
    return f"largest difference {worst:.2g}{' in evaluation; ' if notes else ''}{'; '.join(notes)}"


@law
def sliced_equals_extracted(case: Case, subject: Subject, court: Court) -> str:
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
                mine = run_seeded(net, case.example)
            other = run_seeded(small, case.example)
            what = f"outputs in {'training' if training else 'evaluation'} of {dict(config)}"
            worst = max(worst, court.close(mine, other, what))
            for loss in (loss_of(mine), loss_of(other)):
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            worst = max(worst, compare_parts(net, small, config, court, before))
    return f"largest difference {worst:.2g} over {len(configs)} sub-networks"


REFUSED = "no ONNX form"
"""How the figures of `extracted_equals_onnx` begin where the export was refused."""
_NO_ONNX = ("No ONNX function found", "has no ONNX form", "has no correct ONNX form")
"""What the last exporter says of an operator that it does not know, and the export of a part that runs as Python."""


@law
def extracted_equals_onnx(case: Case, subject: Subject, court: Court) -> str:
    """The module taken out, exported to ONNX and run by onnxruntime, computes the same at several batch sizes.

    It holds as well where the export is refused because ONNX cannot say it: an operator that neither exporter knows, or
    a part that runs as Python. The figures then say so.
    """
    net, worst = case.family, 0.0
    configs = dict.fromkeys([net.space.smallest(), net.sample(seeded(0, "onnx"))])
    for config in configs:
        small = net.extract(config).eval()
        try:
            model = to_onnx(small, case.example, tolerance=1e-4)
        except PliantError as error:
            court.demand(any(word in str(error) for word in _NO_ONNX), f"{dict(config)}: {error}")
            return f"{REFUSED}: {error.problem}"
        with torch.no_grad():
            court.close(model.run(case.example), call(small, case.example), f"outputs of {dict(config)}", 1e-4)
        worst = max(worst, model.errors["max_rel"])
    return f"largest difference {worst:.2g} over {len(configs)} sub-networks"


def _orders(net: Elastic) -> dict[int, IntArray]:
    """For each group that may bend a new order in which no unit keeps its place."""
    return {g: order for g, order in reorderings(net.graph).items() if g not in net.dropped}


@law
def permutation(case: Case, subject: Subject, court: Court) -> str:
    """In double precision the output does not change when all units change places, group by group and all at once."""
    graph = case.family.graph
    checker, permutations = PermutationCheck(graph), _orders(case.family)
    worst = checker.error(permutations) if permutations else 0.0
    court.demand(worst <= checker.tolerance, f"all groups at once: output changes by {worst:.3g}")
    for g, order in permutations.items():
        court.demand(bool((order != np.arange(len(order))).all()), f"{graph.groups[g].name}: a unit stays in its place")
        error = checker.error({g: order})
        court.demand(error <= checker.tolerance, f"{graph.groups[g].name}: output changes by {error:.3g}")
        worst = max(worst, error)
    return f"largest change {worst:.2g} over {len(permutations)} groups"


def _matters(checker: PermutationCheck, name: str) -> bool:
    """Whether the output depends on the values of a state tensor."""
    kept = checker.states[name]
    noise = torch.randn(kept.shape, generator=seeded(0, "silent", name), dtype=torch.float64)
    checker.states[name] = kept + noise.to(kept.dtype)
    try:
        return checker.error({}) > checker.tolerance * 1e-3
    finally:
        checker.states[name] = kept


@law
def leave_one_axis_out(case: Case, subject: Subject, court: Court) -> str:
    """The control of `permutation`: wherever a group reaches, leaving that one axis in its old order shows.

    Only a tensor whose values do not matter at all (the bias of keys, which softmax does not see) may stay silent.
    """
    graph = case.family.graph
    checker, silent, least, count = PermutationCheck(graph), [], float("inf"), 0
    for g, order in _orders(case.family).items():
        where = graph.groups[g].where
        noise = max(checker.error({g: order}), torch.finfo(checker.dtype).eps)
        for name, axis in where if len(where) > 1 else ():  # one place alone has nothing to be out of step with
            error, count = checker.error({g: order}, leave=(name, axis)), count + 1
            if error > min(checker.tolerance * 1e-3, 20 * noise):
                least = min(least, error)
            elif f"{name}[{axis}]" not in subject.silent and _matters(checker, name):
                silent.append(f"{name}[{axis}] of {graph.groups[g].name}")
    court.demand(not silent, f"{len(silent)} of {count} axes are silent: {', '.join(silent)}")
    return f"{count} axes react, the least by {least:.2g}" if count else "no axes"


@law
def slices_only(case: Case, subject: Subject, court: Court) -> str:
    """Ten AdamW steps with weight decay on one small sub-network leave all else bit-identical, the optimizer too."""
    net = copy.deepcopy(case.family).train()
    spans = [name for name in net.graph.span_names if name in {knob.name for knob in net.space}]
    config = net.space.smallest().replace(dict.fromkeys(spans[1:], True))
    masks, before = masks_of(net, config), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        with net.using(config):
            loss_of(call(net, case.example)).backward()  # type: ignore[no-untyped-call]
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


@law
def cost_falls(case: Case, subject: Subject, court: Court) -> str:
    """The smallest member costs less than the largest; parameters are the true count, FLOPs those that torch counts.

    The original may count for more than the largest: what no output depends on is not in the graph.
    """
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
        if not any(node.packet in NOT_COUNTED for node in net.graph.program):
            counted = counted_flops(small, case.example)
            court.demand(abs(said.flops - counted) <= 0.01 * counted,
                         f"{said.flops} FLOPs said of {dict(config)}, torch counts {counted:.0f}")  # fmt: skip
    if not any(node.packet in NOT_COUNTED for node in net.graph.program):
        counted = counted_flops(case.model, case.example)
        court.demand(most.flops <= 1.01 * counted, f"{most.flops} FLOPs, torch counts {counted:.0f} of the original")
    return f"FLOPs {least.flops} to {most.flops}, parameters {least.parameters} to {most.parameters}"


@law
def save_load(case: Case, subject: Subject, court: Court) -> str:
    """What was saved comes back the same, made of plain modules: spaces, states, flags, outputs."""
    net = copy.deepcopy(case.family)
    if net.graph.opaque_paths():
        court.refuses(PliantError, lambda: net.save("never"), "storing parts that run as Python")
        return "refused: parts of it run as Python"
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
                court.close(
                    run_seeded(back, case.example), run_seeded(net, case.example), f"outputs of {dict(choice)}", 0.0
                )
                court.demand(back.cost(choice) == net.cost(choice), f"cost of {dict(choice)}: {back.cost(choice)}")
    return f"{len(flags)} parameters, outputs equal"


@law
def deterministic(case: Case, subject: Subject, court: Court) -> str:
    """Made elastic twice, a network gives the same groups, knobs, draws and outputs."""
    one, two = case.family, elastic(subject.make(), subject.example(), choices=subject.choices)
    court.demand(one.space == two.space, f"{one.space} and {two.space}")
    court.demand(one.graph.groups == two.graph.groups, "groups differ")
    court.demand(one.graph.spans == two.graph.spans, "spans differ")
    draws = [[net.sample(generator) for _ in range(5)] for net in (one, two) for generator in [seeded(3, "draws")]]
    court.demand(draws[0] == draws[1], f"draws differ: {draws}")
    with torch.no_grad():
        for config in (one.space.largest(), draws[0][0]):
            outputs = [run_seeded(net.extract(config).eval(), case.example) for net in (one, two)]
            court.close(outputs[0], outputs[1], f"outputs of {dict(config)}", 0.0)
    return f"{len(one.space)} knobs, equal"


@law
def depth_skips(case: Case, subject: Subject, court: Court) -> str:
    """Leaving a span out equals adding zeros for its branch, and its own parameters are gone."""
    net, worst = copy.deepcopy(case.family).eval(), 0.0
    kinds = {node.name: node for node in net.graph.program}
    for name, span in zip(net.graph.span_names, net.graph.spans, strict=False):  # sums have no name
        if name not in {knob.name for knob in net.space}:
            continue
        config = net.space.largest().replace({name: False})
        small = net.extract(config)
        own = {kinds[n].target for n in span.nodes if kinds[n].kind == "state"}
        left, whole = set(small.state_dict()), set(net.state_dict()) & set(net.graph.states)
        court.demand(whole - left == own & whole, f"{name}: {sorted(whole - left)} left out, its own are {sorted(own)}")
        with torch.no_grad(), net.using(config):
            wanted = interpret(net.graph, case.example, zeroed=span.branch, copied=(span.merge, span.shortcut))
            worst = max(worst, court.close(call(net, case.example), wanted, f"{name}: sliced and reference outputs"))
            worst = max(
                worst, court.close(call(small, case.example), wanted, f"{name}: extracted and reference outputs")
            )
    return f"largest difference {worst:.2g} over {len(net.graph.span_names)} spans"


NOT_ONE_PASS = "cannot be one pass"
"""How the figures of `prefix_equals_column` begin where `one_pass` refused the network."""


@law
def prefix_equals_column(case: Case, subject: Subject, court: Court) -> str:
    """Every width of the one-pass network is its column of the one forward: alone, shell after shell, taken out.

    In training as well, with its gradients and the batch statistics that it leaves, where training draws nothing at
    random. A network that cannot be one pass keeps the law if the refusal names the place and the way out.
    """
    family, told = elastic(case.model, case.example, choices=subject.choices, min_size=1, verbose=False), ""
    for shells in (4, 2):
        try:
            net = one_pass(family, shells=shells)
        except PliantError as error:
            court.demand(bool(error.where and error.fix), f"refused without a place or a way out: {error}")
            told = f"{NOT_ONE_PASS}: {error}"
            continue
        trains = is_repeatable(net, case.example)
        worst = max(prefixes_run(net, case.example, court), prefixes_train(net, case.example, court) if trains else 0.0)
        return f"largest difference {worst:.2g} over {shells} widths in {'both modes' if trains else 'evaluation'}"
    return told


@law
def bad_input(case: Case, subject: Subject, court: Court) -> str:
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
