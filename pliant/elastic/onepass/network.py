"""OnePass: a network that has all its widths in one forward."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pliant.core.parts import Index, part_of, put
from pliant.elastic.extract import attach
from pliant.elastic.onepass.operators import convolution_settings, product_of
from pliant.elastic.onepass.places import Head, Linear, Mix, Norm, Step
from pliant.elastic.onepass.plan import Plan
from pliant.elastic.onepass.running import Columns, Run, Runner, picked, runner_of
from pliant.elastic.onepass.shells import Shells
from pliant.elastic.operators import overwriting
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING
from pliant.graph.labels import IntArray

if TYPE_CHECKING:
    from pliant.learn import Recipe


class OnePass(nn.Module):
    """A network of S widths, of which one forward computes all. Made by `pliant.one_pass`.

    Every elastic width is cut into S shells. Shell j reads shells 1 to j alone, so that the first k shells are a
    network by themselves: the one of width k. Its output is column k of the whole forward, and wider ones only add to
    what it has computed. The state dict has the original's names; weights of heads are stacked, one for each width.

    Attributes:
        graph: the traced network it was built from.
        plan: what every call does.
        shells: how widths are cut.
        leak: share of the gradient that goes back to earlier shells.
        own_heads: whether heads have weights for every width.
    """

    def __init__(self, graph: Graph, plan: Plan, name: str, *, leak: float = 1.0, own_heads: bool = True) -> None:
        super().__init__()
        self.graph, self.plan, self.shells, self.name, self.leak = graph, plan, plan.shells, name, leak
        self.own_heads = own_heads
        self._heads = {state for step in plan.steps if isinstance(step, Head) for state in (step.weight, step.bias)}
        made: dict[int, Tensor] = {}
        for state, tensor in _initial(graph, plan, own_heads).items():
            attach(self, state, made.setdefault(id(tensor), tensor))
        self._bind()
        self._names: dict[str, str] = {}
        for what, tensor in _constants(plan, graph, leak).items():
            self._names[what] = f"_one_pass_{len(self._names)}"
            self.register_buffer(self._names[what], tensor, persistent=False)
        self._vectors = {node.target: plan.values[node.name] for node in graph.program.states
                         if node.name in plan.values}  # fmt: skip
        self._sizes = _sizes(graph, plan.shells)
        self._runners = self._compile()

    def _bind(self) -> None:
        modules = dict(self.named_modules())
        places = (node.target.rpartition(".") for node in self.graph.program.states)
        self._owners = {f"{path}.{leaf}" if path else leaf: (modules[path], leaf) for path, _, leaf in places}

    def _compile(self) -> list[tuple[Step, Runner]]:
        program, plan = self.graph.program, self.plan
        patches = {(p.node, p.key, p.item): (i, p) for i, p in enumerate(self.graph.patches)}
        each = frozenset(name for name, value in plan.values.items() if value.each)
        written = overwriting(program)
        found = []
        for step in plan.steps:
            linear = isinstance(step, Linear)
            product = (product_of(step.node), convolution_settings(step.node)) if linear else None
            found.append((step, runner_of(step, patches, each, step.node.name in written, product)))
        return found

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def widths(self) -> int:
        """S: how many widths there are."""
        return self.shells.count

    @property
    def units(self) -> Mapping[str, tuple[int, ...]]:
        """Group of tied units to how many of them every width has."""
        return self.shells.widths()

    @property
    def example(self) -> Any:
        """The example input it was traced with."""
        return self.graph.example

    def extra_repr(self) -> str:
        """Widths and groups."""
        return f"{self.name}, {self.widths} widths of {len(self.units)} groups"

    def default_recipe(self) -> "Recipe":
        """The recipe that `pliant.train` takes where none is given: `AllWidths()`."""
        from pliant.elastic.recipes.one_pass import AllWidths  # recipes are made of this class

        return AllWidths()

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, width: int | None = None, **kwargs: Any) -> Any:
        """Run on the original's arguments.

        Args:
            args, kwargs: the original's.
            width: None for all widths: every output tensor has S rows more in front, [S, N, ...], and row k-1 is what
                width k gives. An int in 1..S computes that width alone, from the weights of its shells.

        Raises:
            ValueError: no such width.
        """
        inputs = self.graph.program.form.tensors(args, kwargs, self.name)
        if width is None:
            run = self._run(inputs, self._new(self.widths, stacked=True))
            return picked(self.graph.program.output, run.env, self._stacked)
        self._check(width)
        run = self._run(inputs, self._new(width))
        return picked(self.graph.program.output, run.env, _one)

    def anytime(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """What every width gives in evaluation, the narrowest first; each costs only what its own shell adds."""
        inputs = self.graph.program.form.tensors(args, kwargs, self.name)
        run: Run | None = None
        for width in range(1, self.widths + 1):
            before = run
            run = self._new(width, alone=True)
            if before is not None:
                run.past = before.past
                run.env.update({name: before.env[name] for name in self._free() if name in before.env})
            with torch.no_grad():
                run = self._run(inputs, run, training=False)
                output = picked(self.graph.program.output, run.env, _one)
            yield output

    def at(self, width: int) -> nn.Module:
        """One width as a module that shares these weights: to evaluate, say.

        Raises:
            ValueError: no such width.
        """
        self._check(width)
        return _At(self, width)

    def _check(self, width: int) -> None:
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= self.widths:
            raise ValueError(f"width must be in 1..{self.widths}, got {width!r}")

    def _new(self, width: int, *, alone: bool = False, stacked: bool = False) -> Run:
        tensors: dict[str, Tensor] = {name: self.constant(name) for name in self._names}
        tensors |= {state: self.state(state) for state in self._heads if state is not None}
        sizes = self._sizes[width, alone]
        return Run(self.shells, width, alone, stacked, sizes, tensors, self.leak, {})

    def _run(self, inputs: list[Any], run: Run, training: bool | None = None) -> Run:
        env, known = run.env, set(run.env)
        env[TRAINING] = self.training if training is None else training
        for node, value in zip(self.graph.program.inputs, inputs, strict=True):
            env[node.name] = value
        copies = self._load(run)
        for step, runner in self._runners:
            if step.node.name not in known and (not step.node.live or env[TRAINING]):
                env[step.node.name] = runner(run)
        for state, index, part in copies if env[TRAINING] else ():
            put(self.state(state), index, part)
        return run

    def _load(self, run: Run) -> list[tuple[str, tuple[Index, ...], Tensor]]:
        """Put weights in their places; statistics whose part is a copy."""
        copies = []
        for node in self.graph.program.states:
            if node.target in self._heads:
                continue
            tensor = self.state(node.target)
            value = self._vectors.get(node.target)
            if run.whole or value is None or not value.axes or value.whole:
                run.env[node.name] = tensor
                continue
            index = tuple(run.index(value.axes[a]) if a in value.axes else slice(None) for a in range(tensor.dim()))
            run.env[node.name] = part_of(tensor, index)
            if not isinstance(tensor, nn.Parameter) and not all(isinstance(entry, slice) for entry in index):
                copies.append((node.target, index, run.env[node.name]))
        return copies

    def state(self, name: str) -> Tensor:
        """The live tensor of a name in the state dict."""
        owner, leaf = self._owners[name]
        found: Tensor | None = owner._parameters.get(leaf)
        return owner._buffers[leaf] if found is None else found

    def constant(self, name: str) -> Tensor:
        """A mask, or what a normalisation needs, by "what node"."""
        return cast(Tensor, self._buffers[self._names[name]])

    def _free(self) -> list[str]:
        """Calls whose values no width changes."""
        return [step.node.name for step in self.plan.steps if not step.shelled and not step.each]

    def _stacked(self, value: Any) -> Any:
        if isinstance(value, list):
            return value.stacked if isinstance(value, Columns) else torch.stack(value)
        return value.expand(self.widths, *value.shape) if isinstance(value, Tensor) else value

    # -- taking out -------------------------------------------------------------------------------------------------

    def extract(self, width: int | None = None) -> nn.Module:
        """One width as a plain module of its sizes, with the original's parameter names; its tensors are copies.

        Such a module can be trained on and exported with `pliant.export.to_onnx`; `pliant.compile(net.extract(2), out,
        example=x)` makes an artifact of that one network.

        Args:
            width: which; None for all in one module, which gives what a forward of this network gives, [S, N, ...].

        Raises:
            ValueError: no such width.
        """
        from pliant.elastic.onepass.extracting import extracted

        if width is not None:
            self._check(width)
        return extracted(self, width)

    def save(self, path: str | Path) -> None:
        """Write everything needed to run it without the user's code: safetensors and JSON.

        Raises:
            PliantError: a part of it runs as it is.
        """
        from pliant.elastic.onepass.storage import save_one_pass

        save_one_pass(self, path)

    @staticmethod
    def load(path: str | Path) -> "OnePass":
        """The inverse of `save`.

        Raises:
            PliantError: nothing there, a damaged file, or an `Elastic`'s, which `Elastic.load` takes.
        """
        from pliant.elastic.onepass.storage import load_one_pass

        return load_one_pass(path)


class _At(nn.Module):
    """One width of a network."""

    def __init__(self, net: OnePass, width: int) -> None:
        super().__init__()
        self.net, self.width = net, width

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What this width gives."""
        return self.net(*args, width=self.width, **kwargs)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


# -- building --------------------------------------------------------------------------------------------------------


def _sizes(graph: Graph, shells: Shells) -> dict[tuple[int, bool], list[int]]:
    """Values of the patches for every width, and for the newest shell of every width alone."""
    values = [[patch.value(shells.counts(width)) for patch in graph.patches] for width in range(shells.count + 1)]
    cut = [shells.vector(patch.axis) is not None for patch in graph.patches]
    found = {}
    for width in range(1, shells.count + 1):
        before = values[width - 1] if width > 1 else [0] * len(cut)
        found[width, False] = values[width]
        found[width, True] = [n - b if c else n for n, b, c in zip(values[width], before, cut, strict=True)]
    return found


def _constants(plan: Plan, graph: Graph, leak: float) -> dict[str, Tensor]:
    """Masks, means and the like by "what node"; equal ones share their memory."""
    known: dict[tuple[object, ...], Tensor] = {}
    found: dict[str, Tensor] = {}
    shells = plan.shells.count
    dtype = next((t.dtype for t in graph.states.values() if t.is_floating_point()), torch.float32)

    def enter(what: str, step: Step, values: np.ndarray[Any, Any]) -> None:
        key = (values.shape, values.tobytes())
        found[f"{what} {step.node.name}"] = known.setdefault(key, torch.from_numpy(values).to(dtype))

    for step in plan.steps:
        if isinstance(step, Mix):
            late = _faces(step, step.into, step.out_of, len(plan.values[step.weight].shape))
            enter("mask", step, late[0] <= late[1])
            enter("back", step, np.where(late[0] == late[1], 1.0, leak))
        elif isinstance(step, Head):
            dims = graph.states[step.weight].dim()
            into = step.into.reshape([1, *(-1 if axis == step.layout[1] else 1 for axis in range(dims))])
            rows = np.arange(1, shells + 1).reshape(-1, *[1] * dims)
            enter("mask", step, into <= rows)
            enter("back", step, np.where(into == rows, 1.0, leak))
        elif isinstance(step, Norm):
            sizes = np.bincount(step.into, minlength=shells + 1)[1:]
            shares = np.triu(np.outer(sizes, 1 / sizes.cumsum()))
            enter("shells", step, (step.into == np.arange(1, shells + 1)[:, None]).astype(np.float64))
            enter("shares", step, shares)
            # the units' own weights in the means: without their numbers
            enter("back", step, shares / sizes[:, None] * np.where(np.eye(shells, dtype=bool), 1.0, leak))
    return found


def _faces(step: Mix, into: IntArray, out_of: IntArray, dims: int) -> tuple[IntArray, IntArray]:
    """Shells of inputs and outputs, each along its axis of the weight."""
    shapes = [[1] * dims, [1] * dims]
    for shape, axis in zip(shapes, (step.layout[1], step.layout[0]), strict=True):
        shape[axis] = -1
    return into.reshape(shapes[0]), out_of.reshape(shapes[1])


@torch.no_grad()
def _initial(graph: Graph, plan: Plan, own_heads: bool) -> dict[str, Tensor]:
    """The parameters to start from.

    Row blocks lose the inputs of later shells, so they are multiplied by sqrt(inputs / inputs left): whatever the
    original's initialisation was, every unit starts with the variance that it would have there (He et al. 2015,
    arXiv:1502.01852, with the fan-in of each row block). What a row must not read is zero, and stays so.
    """
    new: dict[int, Tensor] = {}
    for tensor in graph.states.values():
        if id(tensor) not in new:
            own = tensor.detach().clone()
            new[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    found = {state: new[id(tensor)] for state, tensor in graph.states.items()}
    done: set[int] = set()
    stacked: set[str] = set()
    for step in plan.steps:
        origin = plan.values[step.weight].origin if isinstance(step, Mix) else None
        if isinstance(step, Mix) and origin is not None and id(found[origin[0]]) not in done:
            tensor = found[origin[0]]
            done.add(id(tensor))
            into, out_of = _faces(step, step.into, step.out_of, tensor.dim())
            mask = torch.from_numpy(into <= out_of).to(tensor)
            inverse = [origin[1].index(axis) for axis in range(tensor.dim())]
            scale = (mask.shape[step.layout[1]] / mask.sum(step.layout[1], keepdim=True)).sqrt()
            scale = scale if isinstance(tensor, nn.Parameter) else torch.ones_like(scale)
            tensor.mul_((mask * scale).permute(inverse))
        elif isinstance(step, Head) and step.weight not in stacked:
            stacked.add(step.weight)
            weight, widths = found[step.weight], plan.shells.count
            for state in (step.weight, step.bias):
                if state is not None and (own_heads or state == step.bias):
                    old = found[state]
                    found[state] = nn.Parameter(torch.stack([old.detach()] * widths), old.requires_grad)
            if own_heads:
                into = step.into.reshape([-1 if axis == step.layout[1] else 1 for axis in range(weight.dim())])
                for row in range(widths):
                    inside = into <= row + 1
                    found[step.weight][row] *= torch.from_numpy(inside * np.sqrt(inside.size / inside.sum())).to(weight)
    return found
