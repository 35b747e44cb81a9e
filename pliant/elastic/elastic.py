"""Elastic: a network that contains many networks."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pliant.core import Config, PliantError, Selection, Space, call, copied, tensors_of
from pliant.core.parts import put
from pliant.elastic.extract import attach, attach_module, calibrate, check_names, extract_module, forgive, parameter_of
from pliant.elastic.knobs import Choices, knob_of, make_space
from pliant.elastic.order import PermutationCheck, Permutations, magnitude, permuted
from pliant.elastic.report import Report, make_report
from pliant.elastic.resolution import check_sizes
from pliant.elastic.runner import Runner
from pliant.elastic.slicing import AxisCuts, Gradients, Ranges, Slice, StateCuts, is_view, take
from pliant.elastic.statistics import Statistics
from pliant.elastic.transforms import Transforms
from pliant.flow.joint import Joint
from pliant.graph.analyse import Rigid
from pliant.graph.capture import check_model, unwrapped
from pliant.graph.graph import Cost, Graph, Group, aliases
from pliant.graph.labels import IntArray
from pliant.graph.spans import closed

if TYPE_CHECKING:
    from pliant.learn import Recipe

Importance = str | Mapping[str, Sequence[float]] | Callable[["Elastic"], Mapping[str, Sequence[float]]]

_State = tuple[IntArray, tuple[bool, ...], list[int], list[Slice | None]]
"""Kept counts, kept spans, values of the patches, and for each state its cut."""
_PREPARED = 16
"""How many sub-networks stay prepared."""


class Elastic(nn.Module):
    """A family of nested sub-networks over one set of parameters. Made by `pliant.elastic`.

    It is called as the original was; `activate` chooses which sub-network answers. Its `state_dict()` holds the
    full-size parameters under their original names: tied ones once, unused ones not at all. The original's state dict
    can be loaded into it. Where kernel sizes bend it also holds their transforms (`kernel_transforms.stem.to5`).

    Attributes:
        graph: the traced network.
        space: what can be chosen.
        name: class name of the original.
    """

    def __init__(self, graph: Graph, space: Space, name: str, dropped: Iterable[int] = (), *,
                 others: Iterable[str] = (), own: Iterable[str] = ()) -> None:  # fmt: skip
        super().__init__()
        # Names that only the original's state dict holds (second names of tied tensors, unused parameters), and those
        # that only this one holds (constants, buffers that are not persistent).
        self._others, self._own = tuple(others), tuple(own)
        self.register_load_state_dict_pre_hook(forgive)  # type: ignore[no-untyped-call]
        self.graph, self.space, self.name = graph, space, name
        self.dropped = tuple(dropped)
        for g in self.dropped:
            reason = "its units cannot be reordered: the network tells them apart"
            graph.rigid.append(Rigid("", graph.groups[g].name.partition(":")[2], "", reason))
        self._owners: list[tuple[nn.Module, str]] = []
        for path, opaque in graph.program.opaque.items():
            attach_module(self, path, opaque.module)
        for state, tensor in graph.states.items():
            attach(self, state, tensor)
        self._runner = self._runs(graph)
        self._bind()
        self._knobs = [knob_of(space, group.name) for group in graph.groups]
        self._depths = [knob_of(space, name) for name in graph.span_names]
        self._cuts = self._make_cuts()
        n = len(graph.groups)
        pairs = [patch.affine(n) for patch in graph.patches]
        self._slope = np.array([p[0] for p in pairs], dtype=np.int64).reshape(len(pairs), n)
        self._base = np.array([p[1] for p in pairs], dtype=np.int64)
        self._scale = np.array([patch.scale for patch in graph.patches], dtype=np.int64).reshape(len(pairs), 2)
        self._offset = np.array([patch.offset for patch in graph.patches], dtype=np.int64)
        self._transforms = Transforms(self, graph, self._kernel_sizes())
        self._gradients = Gradients()
        self._statistics = Statistics(graph)
        self._prepared: dict[Config, tuple[_State, list[int], set[str], list[int]]] = {}
        self._touched: tuple[IntArray, tuple[bool, ...], list[Slice | None]] | None = None
        self._touched_transforms: set[str] = set()
        self.activate(space.largest())

    def _runs(self, graph: Graph) -> Runner:
        """What runs a graph's sub-networks."""
        return Runner(graph)

    def _kernel_sizes(self) -> dict[int, tuple[int, ...]]:
        """Group to the kernel sizes that its knob offers, where it has one."""
        offered = {knob.name: tuple(int(choice) for choice in knob.choices) for knob in self.space}
        groups = enumerate(zip(self.graph.groups, self._knobs, strict=True))
        return {i: offered[knob] for i, (group, knob) in groups if group.kind == "kernel" and knob in offered}

    def _bind(self) -> None:
        modules = dict(self.named_modules())
        self._owners = []
        for state in self._runner.states:
            path, _, leaf = state.rpartition(".")
            self._owners.append((modules[path], leaf))

    def _make_cuts(self) -> dict[str, StateCuts]:
        shared: dict[tuple[bytes, bytes], AxisCuts] = {}
        found: dict[str, StateCuts] = {}
        for name, axes in self.graph.state_axes.items():
            keys = {a: (axis.group.tobytes(), axis.rank.tobytes()) for a, axis in axes.items()}
            cuts = {a: shared.setdefault(key, AxisCuts(axes[a])) for a, key in keys.items()}
            found[name] = StateCuts(cuts, self.graph.states[name].shape)
        return found

    # -- choosing ---------------------------------------------------------------------------------------------------

    @property
    def active(self) -> Config:
        """The sub-network that answers."""
        return self._active

    @property
    def example(self) -> Any:
        """The example input it was traced with."""
        return self.graph.example

    def sample(self, generator: torch.Generator) -> Config:
        """A random sub-network."""
        return self.space.sample(generator)

    def activate(self, config: Mapping[str, int | bool]) -> Config:
        """Let a sub-network answer from now on; knobs that are not named are whole.

        Raises:
            ValueError: an unknown knob or a value it does not take.
        """
        self._active = self.space.validate(config)
        if self._active not in self._prepared:
            while len(self._prepared) >= _PREPARED:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[self._active] = self._prepare(self._active)
        self._state, self._cropped, self._through, self._copied = self._prepared[self._active]
        return self._active

    def _prepare(self, config: Config) -> tuple[_State, list[int], set[str], list[int]]:
        """What the runner gets for a sub-network; states whose kernels are cropped, and through which matrices; buffers
        whose part is a copy."""
        counts, spans = self._resolve(config)
        cuts = self._cut_list(counts, spans)
        used = [state for state, cut in zip(self._runner.states, cuts, strict=True) if cut is not None]
        cropped = self._transforms.cropped(counts, used)
        indices = [self._runner.states.index(state) for state in cropped]
        copied = [i for i, cut in enumerate(cuts) if cut and not is_view(cut) and self._buffer(i) is not None]
        return (counts, spans, self._values(counts), cuts), indices, self._transforms.used(counts, cropped), copied

    def _buffer(self, i: int) -> Tensor | None:
        owner, leaf = self._owners[i]
        return owner._buffers.get(leaf)

    @contextmanager
    def using(self, config: Mapping[str, int | bool]) -> Iterator["Elastic"]:
        """`activate` for the length of a `with` block."""
        before = self._active
        self.activate(config)
        try:
            yield self
        finally:
            self.activate(before)

    def _whole(self, counts: IntArray, spans: tuple[bool, ...]) -> bool:
        """Whether this is all of the network."""
        return all(spans) and counts.tolist() == [group.units for group in self.graph.groups]

    def _resolve(self, config: Config) -> tuple[IntArray, tuple[bool, ...]]:
        kept = [int(config.get(knob, g.units)) for knob, g in zip(self._knobs, self.graph.groups, strict=True)]
        spans = closed(self.graph.spans, [bool(config.get(knob, True)) for knob in self._depths])
        return np.array(kept, dtype=np.int64), spans

    def _values(self, counts: IntArray) -> list[int]:
        return (
            (((self._slope @ counts + self._base) * self._scale[:, 0] + self._offset) // self._scale[:, 1]).tolist()
            if len(self._base)
            else []
        )

    def _cut_list(self, counts: IntArray, spans: tuple[bool, ...]) -> list[Slice | None]:
        """For each state its cut; None where it is unused."""
        used = set(self.graph.used_states(spans))
        return [self._cut(name, counts) if name in used else None for name in self._runner.states]

    def _cut(self, name: str, counts: IntArray) -> Slice:
        return self._cuts[name].of(counts)

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active sub-network on the original's arguments."""
        inputs = self.graph.program.form.tensors(args, kwargs, self.name)
        counts, spans, sizes, cuts = self._state
        weights: list[Tensor | None] = []
        for (owner, leaf), cut in zip(self._owners, cuts, strict=True):
            tensor = owner._parameters.get(leaf)
            whole = owner._buffers[leaf] if tensor is None else tensor
            part = None if cut is None or whole is None else take(whole, cut, self._gradients) if cut else whole
            weights.append(part)
        for i in self._cropped:
            owner, leaf = self._owners[i]
            whole, cut = owner._parameters[leaf], cuts[i]
            weights[i] = self._transforms.part(self, self._runner.states[i], whole, cut, counts)  # type: ignore[arg-type]
        if self.training:
            self._touch()
            if self._statistics:
                self._statistics.trained(whole=self._whole(counts, spans))
        elif self._statistics:
            for i, own in self._statistics.of(self, whole=self._whole(counts, spans)).items():
                weights[i] = own
        output = self._runner(inputs, weights, sizes, spans, self.training)
        for i in self._copied if self.training else ():  # statistics that were updated go back to where they belong
            whole, cut, part = self._buffer(i), cuts[i], weights[i]
            if whole is not None and cut is not None and part is not None:
                put(whole, cut, part)
        return output

    def _touch(self) -> None:
        if not torch.is_grad_enabled():
            return
        counts, spans, _, cuts = self._state
        self._touched_transforms |= self._through
        if self._touched is not None:
            before = self._touched
            counts, spans = np.maximum(before[0], counts), tuple(a or b for a, b in zip(before[1], spans, strict=True))
            cuts = self._cut_list(counts, spans)
        self._touched = counts, spans, cuts

    def touched(self) -> dict[nn.Parameter, Slice]:
        """What training forwards since `clear_touched` have used.

        Returns:
            The slice of every parameter, one entry an axis; empty for those that only skipped spans own.
        """
        if self._touched is None:
            return {}
        counts, spans, cuts = self._touched
        if self._transforms.names:
            cuts = self._cut_list(self._transforms.read(counts), spans)
        found: dict[nn.Parameter, Slice] = {}
        for (owner, leaf), cut in zip(self._owners, cuts, strict=True):
            parameter = owner._parameters.get(leaf)
            if parameter is None:
                continue
            if cut is not None:
                found[parameter] = cut or (slice(None),) * parameter.dim()
            else:  # a gradient of zeros from an earlier step would still let weight decay move it
                found.setdefault(parameter, (slice(0, 0),) * parameter.dim())
        if self.graph.program.opaque:
            inside = {id(tensor) for tensor in self.graph.opaque_states(self.graph.skipped(spans)).values()}
            for tensor in self.graph.opaque_states().values():
                if isinstance(tensor, nn.Parameter):
                    part = slice(None) if id(tensor) in inside else slice(0, 0)
                    found[tensor] = (part,) * tensor.dim()
        for name in self._transforms.names:
            whole = slice(None) if name in self._touched_transforms else slice(0, 0)
            found[parameter_of(self, name)] = (whole, whole)
        return found

    def clear_touched(self) -> None:
        """Forget what was used (after an optimizer step)."""
        self._touched = None
        self._touched_transforms = set()

    def train(self, mode: bool = True) -> Self:
        """As in any module; evaluation gives the memory of gradients back, training forgets estimated statistics."""
        if mode:
            self._statistics.forget()
        else:
            self._gradients.clear()
        return super().train(mode)

    def remember(self, batches: Iterable[Any]) -> None:
        """Keep training inputs from which BatchNorm statistics are estimated, once for each sub-network.

        In evaluation, and in `extract`, every sub-network then runs with statistics of its own; without them a cut one
        has those of all that were trained, which may ruin it. `pliant.train` calls this. The inputs are no part of the
        state dict or of files.

        Args:
            batches: inputs (tensor, tuple or dict), axis 0 = samples. Copies of the first 1,024 rows are kept (fewer
                where they take more than 64 MiB); none at all where the network has no BatchNorm. No batches: those
                that were kept are given up, and evaluation uses the running statistics as they are.
        """
        self._statistics.remember(batches)

    # -- taking out -------------------------------------------------------------------------------------------------

    def extract(self, config: Mapping[str, int | bool] | Any, *, calibrate: Iterable[Any] | None = None,
                into: nn.Module | None = None) -> nn.Module:  # fmt: skip
        """A sub-network as a plain, really smaller module with the original parameter names.

        Args:
            config: what to keep: a config, anything with a `.config` (a point of a front), or a `Selection` of freely
                chosen units; what is missing is whole.
            calibrate: batches of training inputs, from which BatchNorm statistics are estimated anew; None takes the
                remembered ones (see `remember`), where there are any.
            into: a narrower module of your own class: it is filled, compared on the example, and returned.

        Raises:
            ValueError: an unknown knob, a value it does not take, or a unit it does not have.
            PliantError: `into` has other parameters, or computes something else.
        """
        module = self._extracted(config, calibrate)
        return module if into is None else self._fill(into, module)

    def _extracted(self, config: Mapping[str, int | bool] | Any, calibrate: Iterable[Any] | None) -> nn.Module:
        orders: dict[int, IntArray] = {}
        if isinstance(config, Selection):
            counts, spans, orders = self._selected(config)
        else:
            counts, spans = self._resolve(self.space.validate(getattr(config, "config", config)))
        states = self._sliced(counts, spans, orders)
        current = self._current()
        shared = {id(current[state]): tensor for state, tensor in states.items()}
        module = self._made_of(states, counts, spans, shared)
        module.train(self.training)
        if calibrate is None:
            calibrate = self._statistics.inputs(self, whole=self._whole(counts, spans), frames=4)
        if calibrate is not None:
            self._calibrated(module, calibrate, counts)
        return module

    def _made_of(self, states: Mapping[str, Tensor], counts: IntArray, spans: Sequence[bool],
                 shared: Mapping[int, Tensor]) -> nn.Module:  # fmt: skip
        """A module of sliced tensors."""
        return extract_module(self.graph, states, self._values(counts), spans, self.name, shared=shared)

    def _calibrated(self, module: Any, batches: Iterable[Any], counts: IntArray) -> None:
        calibrate(module, batches)

    def _selected(self, selection: Selection) -> tuple[IntArray, tuple[bool, ...], dict[int, IntArray]]:
        """Kept counts and spans of a selection, and the orders that bring its units to the front."""
        index = {group.name: i for i, group in self._choosable()}
        kept, spans, orders = {}, dict.fromkeys(self.graph.span_names, True), {}
        for name, value in selection.items():
            if isinstance(value, bool) and name in spans:
                spans[name] = value
            elif isinstance(value, bool) or name not in index:
                raise ValueError(f"no {'depth' if isinstance(value, bool) else 'width'} {name!r} in {self.name}")
            else:
                units = self.graph.groups[index[name]].units
                if value[-1] >= units:
                    raise ValueError(f"{name} has the units 0 to {units - 1}, got {value[-1]}")
                kept[index[name]] = len(value)
                orders[index[name]] = np.array([*value, *(u for u in range(units) if u not in set(value))])
        return self.graph.counts(kept), closed(self.graph.spans, list(spans.values())), orders

    def _choosable(self) -> list[tuple[int, Group]]:
        """The groups whose units can change places."""
        return [(i, g) for i, g in enumerate(self.graph.groups) if i not in self.dropped and not g.ordered]

    def _sliced(self, counts: IntArray, spans: tuple[bool, ...], orders: Permutations) -> dict[str, Tensor]:
        """Copies of what a sub-network uses once its units are in their orders; tied names share one tensor."""
        current = self._current()
        with torch.no_grad():
            moved = permuted(self.graph, current, orders) if orders else current
        tied = aliases(self.graph)
        found: dict[str, Tensor] = {}
        for name in self.graph.used_states(spans):
            first = tied.get(name, name)
            if first in found:
                found[name] = found[first]
                continue
            whole = current[name]
            part = self._part(name, moved[name].detach(), counts).clone().contiguous()
            found[name] = nn.Parameter(part, whole.requires_grad) if isinstance(whole, nn.Parameter) else part
            found.setdefault(first, found[name])
        return {name: found[name] for name in self.graph.used_states(spans)}

    @torch.no_grad()
    def _part(self, name: str, whole: Tensor, counts: IntArray) -> Tensor:
        cut = self._cut(name, counts)
        if self._transforms.trained(self, name, counts):
            return self._transforms.part(self, name, whole, cut, counts)
        return take(whole, cut)

    def _current(self) -> dict[str, Tensor]:
        """The live tensors by state name."""
        found = {}
        for (owner, leaf), name in zip(self._owners, self._runner.states, strict=True):
            tensor = owner._parameters.get(leaf)
            found[name] = owner._buffers[leaf] if tensor is None else tensor
        return found  # type: ignore[return-value]

    def _fill(self, into: nn.Module, module: nn.Module) -> nn.Module:
        try:
            into.load_state_dict(module.state_dict(), strict=False)
            outputs = [tensors_of(self._in_eval(net)) for net in (into, module)]
        except RuntimeError as error:
            line = str(error).strip().splitlines()[-1].strip().rstrip(".")
            raise PliantError(
                f"into does not fit the sub-network ({line})", fix="build it with the sub-network's sizes"
            ) from error
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in outputs]
        if shapes[0] != shapes[1]:
            raise PliantError(f"into gives out {shapes[0]}, the sub-network {shapes[1]}")
        gaps = [(a.double() - b.double()).abs().flatten() for a, b in zip(*outputs, strict=True)]
        worst = float(torch.cat([torch.zeros(1, dtype=torch.float64), *(gap.cpu() for gap in gaps)]).max())
        if not worst <= 1e-4:
            raise PliantError(f"into computes something else than the sub-network (difference {worst:.3g})")
        return into

    def _in_eval(self, net: nn.Module) -> Any:
        """What a network makes of the example; its mode stays."""
        training = {module: module.training for module in net.modules()}
        try:
            with torch.no_grad(), self._statistics.quiet():
                return call(net.eval(), self.example)
        finally:
            for module, mode in training.items():
                module.training = mode

    def sources(self, config: Mapping[str, int | bool]) -> dict[str, tuple[str, list[Ranges | None]]]:
        """Where each tensor of the extracted module comes from.

        Returns:
            Name in the extracted state dict to (name in this state dict, for each axis the kept runs or None: whole).
            Weights that a trained kernel transform makes come from no one place and are left out.
        """
        counts, spans = self._resolve(self.space.validate(config))
        found = {}
        for name in self.graph.used_states(spans):
            if self._transforms.trained(self, name, counts):
                continue
            found[name] = (name, self._cuts[name].ranges(counts))
        for name, tensor in self.graph.opaque_states(self.graph.skipped(spans)).items():
            found.setdefault(name, (name, [None] * tensor.dim()))
        return found

    def reads(self, config: Mapping[str, int | bool]) -> dict[str, list[Ranges | None]]:
        """What a sub-network reads, and so what training it may move.

        Returns:
            Name in the state dict to, for each axis, the runs that are read (None: whole); unused names are missing.
        """
        counts, spans = self._resolve(self.space.validate(config))
        used = self.graph.used_states(spans)
        matrices = self._transforms.used(counts, set(used))
        counts = self._transforms.read(counts)
        found = {name: self._cuts[name].ranges(counts) for name in used}
        inside = self.graph.opaque_states(self.graph.skipped(spans))
        found |= {name: [None] * tensor.dim() for name, tensor in inside.items() if name not in found}
        found |= {name: [None, None] for name in matrices}
        return found

    def cost(self, config: Mapping[str, int | bool]) -> Cost:
        """FLOPs of one sample, parameters and their bytes."""
        return self.graph.cost(*self._resolve(self.space.validate(config)))

    # -- order and report -------------------------------------------------------------------------------------------

    def sort_units(self, importance: Importance = "magnitude") -> None:
        """Put the most important units of every group first, without changing the function of the whole network.

        Args:
            importance: "magnitude", scores by knob name (one number a unit, larger is more important), or a
                function of this network that gives them.

        Raises:
            ValueError: unknown importance, an unknown knob, or a wrong number of scores.
        """
        scores = self._scores(importance)
        orders = {g: np.argsort(-np.asarray(values), kind="stable") for g, values in scores.items()}
        current = self._current()
        with torch.no_grad():
            for name, tensor in permuted(self.graph, {n: t.detach() for n, t in current.items()}, orders).items():
                if name not in aliases(self.graph):
                    current[name].copy_(tensor)

    def _scores(self, importance: Importance) -> dict[int, NDArray[np.float64]]:
        if isinstance(importance, str):
            if importance != "magnitude":
                raise ValueError(f"importance must be 'magnitude', scores or a function, got {importance!r}")
            scored = magnitude(self.graph, self._current())
            return {g: values.numpy() for g, values in scored.items() if g not in self.dropped}
        given = importance(self) if callable(importance) else importance
        index = {group.name: i for i, group in self._choosable()}
        found = {}
        for name, values in given.items():
            if name not in index:
                raise ValueError(f"importance: no group {name!r}; groups are {', '.join(index)}")
            scores = np.asarray(values, dtype=np.float64)
            if scores.shape != (self.graph.groups[index[name]].units,):
                raise ValueError(
                    f"importance of {name}: {self.graph.groups[index[name]].units} scores needed, got {scores.shape}"
                )
            found[index[name]] = scores
        return found

    def default_recipe(self) -> "Recipe":
        """The recipe that `pliant.train` takes where none is given: `Nested()`."""
        from pliant.elastic.recipes.nested import Nested  # recipes are made of this class

        return Nested()

    def report(self) -> Report:
        """What bends, what is rigid and why, what it costs."""
        return make_report(self.graph, self.space, self.name, self.dropped)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def extra_repr(self) -> str:
        """The first line of the report."""
        return self.report().headline()

    def save(self, path: str | Path) -> None:
        """Write everything needed to run it without the user's code: safetensors and JSON."""
        from pliant.elastic.storage import save_elastic

        save_elastic(self, path)

    @staticmethod
    def load(path: str | Path) -> "Elastic":
        """The inverse of `save`."""
        from pliant.elastic.storage import load_elastic

        return load_elastic(path)


def elastic(model: nn.Module, example: Any, *, min_size: int = 4, choices: Choices | None = None, round_to: int = 8,
            tie: Sequence[str] = (), check: bool = True, verbose: bool | None = None) -> Elastic:  # fmt: skip
    """Make a network elastic: a copy in which channels, heads, neurons and blocks can be left out.

    Args:
        model: any `nn.Module`; it is not changed.
        example: an input: a tensor, a tuple (positional) or a dict (keyword); axis 0 is the batch.
        min_size: the smallest number of units that a width keeps.
        choices: by knob-name pattern (`width:*`, `depth:blocks.3.*`) the counts (int) or shares (float) to choose from,
            or booleans for depth; patterns that come later win, and one choice freezes. Kernel sizes
            (`"kernel:*": [3, 5, 7]`), input resolutions (`"resolution:x": [128, 160, 224]`, in pixels; the network
            takes full-size images and resizes them) and sequence lengths (`"length:*": [64, 128]`, the first positions
            of all inputs that fit) bend only where they are named here. So do the dimensions of heads (`"head_dim:*":
            [0.5, 1.0]`: every head loses the same ones, and no heads go), the channels within groups of normalisations
            and convolutions (`"channels:*"`), and modules that keep the shape of their input (`"block:stages.2":
            [False, True]`; `graph.skippable` lists them).
        round_to: shares are rounded to multiples of this where a width has more than four times as many units.
        tie: patterns such as `width:stages.1.*`: all widths (or depths) that fit one are one knob.
        check: whether to reorder all units in double precision and compare (a group that fails is made rigid).
        verbose: whether to print the report; by default only where Python is interactive.

    Raises:
        PliantError: the model cannot be traced; the message names the line.
        ValueError: `min_size` or `round_to` is not positive, or `choices` or `tie` do not fit.
        TypeError: `model` is no module.
    """
    from pliant.elastic.branching import Branching, graph_of  # a family of its own, made of this class

    for what, value in (("min_size", min_size), ("round_to", round_to)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    if isinstance(model, Elastic):
        raise TypeError("this network is elastic already")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    model = unwrapped(model)
    check_model(model)
    check_names(model)
    own = copied(model)
    graph = graph_of(own, _ordered(model, example), asked=tuple(choices or ()))
    dropped = PermutationCheck(graph).unsound() if check else []
    groups = [i for i in range(len(graph.groups)) if i not in dropped]
    space = make_space(graph, groups, min_size=min_size, choices=choices, round_to=round_to, tie=tie)
    stored, used = set(model.state_dict()) - set(graph.opaque_states()), set(graph.states)
    family = Branching if isinstance(graph, Joint) else Elastic
    net = family(graph, space, type(model).__name__, dropped, others=sorted(stored - used), own=sorted(used - stored))
    if isinstance(net, Branching):
        net.keep(own)
    if check:
        check_sizes(net, model)
    net.train(model.training)
    if verbose or (verbose is None and _interactive()):
        print(net.report())
    return net


def _ordered(model: nn.Module, example: Any) -> Any:
    """A dict in the order of the model's own arguments, so that they can be given by place later on."""
    if not isinstance(example, Mapping):
        return example
    names = [name for name in inspect.signature(model.forward).parameters if name in example]
    return {name: example[name] for name in dict.fromkeys((*names, *example))}


def _interactive() -> bool:
    return hasattr(sys, "ps1")
