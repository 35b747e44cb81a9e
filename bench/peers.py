"""peers: half of every network of the zoo pruned away, by pliant and by torch-pruning, side by side.

For each network both tools get the same example, choose units by weight magnitude and keep every depth. A tool is ok
on a network where

- something was pruned: 5 % of the parameters or more are gone,
- the smaller network runs, on another batch too, and gives out tensors of the original's shapes, all of them finite,
- its outputs are those of the original with the weights of the pruned units set to zero. This is compared where it must
  hold: not where a normalisation runs over a pruned axis, which sees zeros that the smaller network does not have.

torch-pruning is used as its careful users do: the layers that make the outputs are ignored, and the numbers of heads
are given (found by pliant); where it fails with them, it is tried once more without, unless it ran out of time.
"""

import copy
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import pliant
from bench._common import Outcome, cached, in_workers, one_thread, sources
from pliant.core import PliantError, call, map_tensors, tensors_of
from pliant.elastic import Elastic
from pliant.testing import ZOO
from pliant.testing.entry import Entry

REQUIRED = ("networks", "ours_ok", "torch_pruning_ok")
PATIENCE = 30  # CPU seconds for one tool on one network; the networks are tiny
LEFT = 0.95  # a share of parameters above this counts as nothing pruned
CLOSE = 1e-4

_OVER_AXES = ("aten.layer_norm", "aten.rms_norm", "aten.group_norm", "aten._fused_rms_norm", "aten.linalg_vector_norm")
_MEANS = ("aten.mean", "aten.var", "aten.norm", "aten.std", "aten.softmax", "aten._softmax", "aten.var_mean")


def run() -> Outcome:
    """The whole row."""
    try:
        import torch_pruning  # noqa: F401
    except ImportError as error:
        raise PliantError("torch-pruning is not installed", fix="pip install 'pliant[peers]'") from error
    rows = dict(zip(ZOO, in_workers(judge, list(ZOO)), strict=True))
    both = [row for row in rows.values() if row["ours"]["ok"] and row["torch_pruning"]["ok"]]
    figures: dict[str, float] = {"networks": len(rows), "both_ok": len(both)}
    for tool in ("ours", "torch_pruning"):
        figures[f"{tool}_ok"] = sum(row[tool]["ok"] for row in rows.values())
        figures[f"{tool}_outputs_compared"] = sum(row[tool].get("compared", False) for row in rows.values())
        if both:
            figures[f"{tool}_seconds_median"] = statistics.median(row[tool]["seconds"] for row in both)
            figures[f"{tool}_parameters_left_median"] = statistics.median(row[tool]["left"] for row in both)
    settings = {"by_network": rows, "medians": "over networks on which both tools are ok", "patience_cpu_s": PATIENCE}
    baseline = {f"ours_{name.removeprefix('torch_pruning_')}": value for name, value in figures.items()
                if name.startswith("torch_pruning_")}  # fmt: skip
    return Outcome(figures, "random inputs, random weights", [0], baseline, settings=settings)


def judge(name: str) -> dict[str, dict[str, Any]]:
    """Both tools on one network of the zoo, from the cache where nothing has changed."""
    import torch_pruning

    rooms = ("core", "graph", "nets", "elastic", "testing")
    key = {"row": "peers", "network": name, "sources": sources(__file__, rooms), "peer": torch_pruning.__version__}
    return cached(key, lambda _: judged(name))[1]


def judged(name: str) -> dict[str, dict[str, Any]]:
    """Both tools on one network of the zoo."""
    entry = ZOO[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = _tried(lambda: pruned_by_pliant(entry))
        theirs = _tried(lambda: pruned_by_torch_pruning(entry, heads=True))
        if not theirs["ok"] and not theirs.get("late"):
            again = _tried(lambda: pruned_by_torch_pruning(entry, heads=False))
            theirs = again if again["ok"] else theirs
    return {"ours": ours, "torch_pruning": theirs}


class _Late(Exception):
    """Time is up."""


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Late(f"no result after {seconds} CPU s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)  # again and again: what is raised in a destructor gets lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _tried(prune: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What came of it; any failure is a reason."""
    one_thread()
    try:
        with _patience(PATIENCE):
            return prune()
    except _Late as error:
        return {"ok": False, "reason": str(error), "late": True}
    except Exception as error:  # tools fail in every way there is, and each counts as a failure
        reason = (str(error).strip().splitlines() or [""])[0]
        return {"ok": False, "reason": f"{type(error).__name__}: {reason[:160]}"}


def pruned_by_pliant(entry: Entry) -> dict[str, Any]:
    """Half of every width, the units of largest magnitude first."""
    model, example = entry.make().eval(), entry.example()
    begun = time.process_time()
    net = pliant.elastic(model, example, min_size=1, verbose=False)
    net.sort_units()
    half = net.space.uniform(0.5).replace(dict.fromkeys(_depths(net), True))
    small = net.extract(half).eval()
    seconds = time.process_time() - begun
    zeroed = _zeroed(net, half) if comparable(net) else None
    return _verdict(model, small, example, seconds, _gap(zeroed, small, example) if zeroed is not None else None)


def _depths(net: Elastic) -> list[str]:
    return [knob.name for knob in net.space if True in knob.choices and False in knob.choices]


def _zeroed(net: Elastic, config: Mapping[str, Any]) -> nn.Module:
    """The whole network with every weight zero that the sub-network leaves out."""
    twin = copy.deepcopy(net).eval()
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, ranges in net.sources(config).values():
            for axis, kept in enumerate(ranges if name in parameters else ()):
                if kept is not None:
                    line = torch.zeros(parameters[name].shape[axis])
                    for begin, end in kept:
                        line[begin:end] = 1
                    shape = [-1 if a == axis else 1 for a in range(parameters[name].dim())]
                    parameters[name].mul_(line.view(shape))
    return twin


def comparable(net: Elastic) -> bool:
    """Whether no normalisation or mean runs over an axis that can shrink."""
    for node in net.graph.program:
        elastic = [
            a for (name, _, a) in net.graph.analysis.axes if node.args and name == getattr(node.args[0], "name", "")
        ]
        if node.packet in _OVER_AXES and elastic:
            return False
        dims = node.args[1] if len(node.args) > 1 else None
        rank = len(net.graph.analysis.shapes.get((getattr(node.args[0], "name", ""), 0), ())) if node.args else 0
        chosen = [d % rank for d in (dims if isinstance(dims, list) else [dims]) if isinstance(d, int) and rank]
        if node.packet in _MEANS and set(elastic) & set(chosen):
            return False
    return True


def pruned_by_torch_pruning(entry: Entry, *, heads: bool) -> dict[str, Any]:
    """Half of every group, group magnitude."""
    import torch_pruning as tp

    original, model, example = entry.make().eval(), entry.make().eval(), entry.example()
    net = pliant.elastic(original, example, verbose=False)
    free, known = comparable(net), _heads(net, model) if heads else {}
    outputs = _output_layers(net, model)
    begun = time.process_time()
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=outputs, num_heads=known, prune_num_heads=bool(known), prune_head_dims=not known,
        head_pruning_ratio=0.5 if known else 0.0,
    )  # fmt: skip
    spent, worst = time.process_time() - begun, 0.0
    for group in pruner.step(interactive=True):
        if free:
            _zero(tp, group)
            twin = copy.deepcopy(model)
        begun = time.process_time()
        group.prune()
        spent += time.process_time() - begun
        worst = max(worst, _gap(twin, model, example)) if free else worst
    return _verdict(original, model, example, spent, worst if free else None)


def _heads(net: Elastic, model: nn.Module) -> dict[nn.Module, int]:
    """Modules whose outputs are heads, with their number."""
    modules = dict(model.named_modules())
    found = {}
    for group in net.graph.groups:
        for name, axis in group.where if group.kind == "heads" else ():
            if axis == 0 and name.endswith("weight"):
                found[modules[name.rpartition(".")[0]]] = group.units
    return found


def _output_layers(net: Elastic, model: nn.Module) -> list[nn.Module]:
    """Layers whose outputs must keep their size."""
    modules = dict(model.named_modules())
    found = []
    for name in net.graph.parameters:
        tensor, axes = net.graph.states[name], net.graph.state_axes[name]
        if tensor.dim() > 1 and 0 not in axes:
            found.append(modules[name.rpartition(".")[0]])
    return [module for module in found if module is not model]


def _zero(tp: Any, group: Any) -> None:
    """Set the weights of a group's pruned units to zero."""
    with torch.no_grad():
        for dependency, indices in group:
            module, into = dependency.target.module, tp.function.PrunerBox
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(weight, Tensor):
                pruner = next((p for p in into.values() if dependency.handler == p.prune_in_channels), None)
                reads = pruner is not None and getattr(module, "groups", 1) == 1
                if reads:
                    weight[:, indices] = 0
                else:
                    weight[indices] = 0


def _gap(wanted: nn.Module, got: nn.Module, example: Any) -> float:
    """Largest difference relative to the largest output."""
    worst = 0.0
    with torch.no_grad():
        for one, other in zip(tensors_of(call(wanted, example)), tensors_of(call(got, example)), strict=True):
            if one.is_floating_point() and one.numel():
                worst = max(worst, float((one - other).abs().max()) / max(1e-6, float(one.abs().max())))
    return worst


def _verdict(model: nn.Module, small: nn.Module, example: Any, seconds: float, gap: float | None) -> dict[str, Any]:
    """ok or the first reason why not."""
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {"ok": False, "seconds": seconds, "left": left, "compared": gap is not None}
    twice = map_tensors(lambda tensor: torch.cat([tensor, tensor]), example)
    with torch.no_grad():
        for inputs in (example, twice):
            wanted, got = tensors_of(call(model, inputs)), tensors_of(call(small, inputs))
            if [t.shape for t in wanted] != [t.shape for t in got]:
                return found | {"reason": "outputs have other shapes"}
            if not all(bool(t.isfinite().all()) for t in got if t.is_floating_point()):
                return found | {"reason": "outputs are not finite"}
    if left > LEFT:
        return found | {"reason": f"nothing pruned: {left:.0%} of the parameters are left"}
    if gap is not None and not gap <= CLOSE:
        return found | {"reason": f"outputs are not those of the zeroed network (relative difference {gap:.2g})"}
    return found | {"ok": True}
