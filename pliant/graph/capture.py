"""Capture: from any `nn.Module` to a program with a live `training` flag.

The module is exported twice, in training and in evaluation mode, because export follows Python branches on
`self.training`; `modes` makes one program of both. A sub-module that export cannot follow becomes opaque: the
innermost one on the way to the failing line, then the one around it. A decision of the network's own forward is
refused.
"""

import gc
import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, as_call, copied, map_tensors, tensors_of
from pliant.core._torch_private import compiled_from
from pliant.core.forms import Form, leaves_of
from pliant.graph.convert import Converter, find_attribute
from pliant.graph.gradients import Gradients
from pliant.graph.ir import Program, evaluated, refs, writes_state
from pliant.graph.ir import substitute_node as substitute_node
from pliant.graph.modes import live_flags, merge
from pliant.graph.opaque import (
    Offence,
    Unsteady,
    Wrapped,
    called_parts,
    can_stand_alone,
    more_rows,
    opaque_part,
    other_values,
)
from pliant.graph.rows import agree, mend, run

_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
_OURS = (os.path.dirname(torch.__file__), os.path.dirname(__file__))
_NOTE = (
    "training and evaluation run different operators; the evaluation graph is used in both modes, "
    "with dropout and normalisation live but without other training-only branches"
)
_TRIES = 24


def capture(
    model: nn.Module, example: Any, *, dynamic: Mapping[str, Sequence[int]] | None = None
) -> tuple[Program, list[str]]:
    """The program of a model and notes on what could not be kept.

    Args:
        model: any module; it is not changed.
        example: a tensor, a tuple (positional) or a dict (keyword); axis 0 is the batch where all sizes agree.
        dynamic: input name to the axes whose size must stay free, besides the batch.

    Raises:
        PliantError: torch.export refuses the model, or bakes in a size that must stay free; the message names the line
            of the user's code.
    """
    check_model(model)
    trial = _Trial(model, example, dynamic or {})
    evaluation = trial.evaluation().without_dead()
    notes = [*trial.notes]
    try:
        training = trial.training().without_dead()
    except PliantError as error:
        return live_flags(evaluation), [
            *notes,
            f"{_NOTE} ({error.where or error.problem} cannot be traced in training)",
        ]
    merged = merge(training, evaluation)
    if merged is None:
        return live_flags(evaluation), [*notes, _NOTE]
    return merged.without_dead(), notes


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside `nn.DataParallel`, `DistributedDataParallel` and `torch.compile`."""
    while True:
        inner = compiled_from(model)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be run or looked into.

    Raises:
        PliantError: TorchScript, lazy modules that have not seen data, parameters without numbers.
    """
    for path, module in model.named_modules():
        where = path or type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise PliantError("TorchScript has no Python to trace", where=where, fix="give the module it was made from")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise PliantError("its size is not known yet", where=name, fix="run the model once on the example first")
        if tensor.is_meta:
            fix = "build the model on a real device, or call to_empty(device=...) and load its weights"
            raise PliantError("it is on the meta device and holds no numbers", where=name, fix=fix)


def shared_memory(program: Program, states: Mapping[str, Tensor]) -> set[str]:
    """Names of state that must stay whole, because opaque sub-modules use it too or another tensor overlaps with it."""
    owned = {id(t) for o in program.opaque.values() for t in o.module.state_dict(keep_vars=True).values()}
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for tensor in {id(tensor): tensor for tensor in states.values()}.values():
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin = int(tensor.storage_offset())
        spans.setdefault(tensor.untyped_storage().data_ptr(), []).append((begin, begin + int(reach), id(tensor)))
    for parts in spans.values():
        for begin, end, name in parts:
            owned |= {name for b, e, other in parts if other != name and begin <= e and b <= end}
    return {name for name, tensor in states.items() if id(tensor) in owned}


def was_training(model: nn.Module) -> bool:
    """Whether any part of a model is in training mode."""
    return any(module.training for module in model.modules())


def two_rows(example: Any) -> Any:
    """The example with at least two rows, because export bakes a batch of one into the graph."""
    tensors = tensors_of(example)
    if tensors and all(tensor.dim() > 0 and tensor.shape[0] == 1 for tensor in tensors):
        return map_tensors(lambda tensor: torch.cat([tensor, tensor]), example)
    return example


class _Trial:
    """Exports of one model, with what was learnt from those that failed."""

    def __init__(self, model: nn.Module, example: Any, dynamic: Mapping[str, Sequence[int]]) -> None:
        self.model, self.call = model, as_call(example)
        try:
            self.form, self.inputs = Form.of(model.forward, example)
        except PliantError as error:
            raise PliantError(error.problem, where=type(model).__name__, fix=error.fix) from error
        # Export takes one tensor that is given twice for one input.
        self.inputs = [tensor.detach().clone() for tensor in self.inputs]
        self.asked = [tuple(dynamic.get(name, ())) for name in self.form.names]
        if unknown := dynamic.keys() - set(self.form.names):
            raise ValueError(f"dynamic: no input {sorted(unknown)}; inputs are {', '.join(self.form.names)}")
        for name, tensor, axes in zip(self.form.names, self.inputs, self.asked, strict=True):
            if any(not 0 <= axis < tensor.dim() for axis in axes):
                raise ValueError(f"dynamic: {name} has {tensor.dim()} axes, got {list(axes)}")
        rows = [tensor.shape[0] if tensor.dim() else 0 for tensor in self.inputs]
        self.batch: list[tuple[int, ...]] = [(0,) if count and count == rows[0] else () for count in rows]
        self.length = [(1,) if _is_sequence(tensor) else () for tensor in self.inputs]
        self.offences: dict[str, Offence] = {}
        self.stacks: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self.baked = False

    def evaluation(self) -> Program:
        """The program of evaluation, at other lengths too where that can be."""
        if any(self.length):
            with suppress(PliantError):
                program = self._followed()
                if self._holds(program, self._shorter(more_rows(self.inputs, self.batch))):
                    self._check_asked(program)
                    return program
                if self._holds(program, self._shorter(self.inputs)):
                    return self._at_other_rows(program)
            self.length = [() for _ in self.inputs]
            self.offences.clear()
        return self._at_other_rows(self._followed())

    def _followed(self) -> Program:
        """The program; sub-modules that cannot be followed are made opaque on the way."""
        for _ in range(_TRIES):
            try:
                return self.export(training=False)
            except _Failed as failed:
                self._blame(failed)
        raise PliantError("too many of its sub-modules cannot be followed", where=type(self.model).__name__)

    def _at_other_rows(self, program: Program) -> Program:
        """The program, mended where the number of rows is written into it, or with a note."""
        more = more_rows(self.inputs, self.batch)
        if self._holds(program, more) is False:
            mended = self._mended(program, training=False)
            self.baked = mended is not None and self._holds(mended, more) is True
            if mended is not None and self.baked:
                return mended
            rows = self.inputs[0].shape[0]
            self.notes.append(f"the batch size is written into the network: the trace holds for {rows} rows alone")
        self._check_asked(program)
        return program

    def training(self) -> Program:
        """The program of training, with the same sub-modules opaque."""
        program = self.export(training=True)
        mended = self._mended(program, training=True) if self.baked else program
        if mended is None:
            raise PliantError("a number in it follows the batch", where=type(self.model).__name__)
        return mended

    def _mended(self, program: Program, *, training: bool) -> Program | None:
        try:
            other = self.export(training=training, inputs=more_rows(self.inputs, self.batch))
        except PliantError:
            return None
        return mend(program, other, self.inputs[0].shape[0])

    def _holds(self, program: Program, inputs: Sequence[Tensor]) -> bool | None:
        """Whether a program computes what the model does on other inputs; None where the model itself fails on them."""
        wrapped = self._wrapped(training=False, whole=_writes_parameters(self.model, program))
        states = {
            name: tensor if isinstance(tensor, nn.Parameter) and not wrapped.whole else tensor.detach().clone()
            for name, tensor in _states(wrapped.net, program).items()
        }
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                wanted = wrapped(*[tensor.clone() for tensor in inputs])
            except Exception:  # sizes that the network does not take
                return None
            torch.manual_seed(0)
            try:
                found = run(evaluated(program), states, [tensor.clone() for tensor in inputs])
            except (RuntimeError, TypeError, ValueError, IndexError, PliantError):
                return False
            return agree(leaves_of(found), wanted)

    def _check_asked(self, program: Program) -> None:
        """Raises PliantError where a size that must stay free is written into the program."""
        if not any(self.asked):
            return
        found = [self._holds(program, inputs) for inputs in self._resized()]
        if False in found or True not in found:
            sizes = [f"{name}[{axis}]" for name, axes in zip(self.form.names, self.asked, strict=True) for axis in axes]
            problem = "its size is written into the network" if False in found else "the network runs at no other size"
            raise PliantError(problem, where=", ".join(sizes), fix="leave this size as it is, or free it in the code")

    def _resized(self) -> Iterator[list[Tensor]]:
        """The example with its free axes half as long, twice as long, one longer."""
        halves, twice = list(self.inputs), list(self.inputs)
        for i, axes in enumerate(self.asked):
            for axis in axes:
                halves[i] = halves[i].narrow(axis, 0, max(halves[i].shape[axis] // 2, 1))
                twice[i] = torch.cat([twice[i], twice[i]], axis)
        yield halves
        yield twice
        yield more_rows(self.inputs, self.asked)

    def _blame(self, failed: "_Failed") -> None:
        """Make one more sub-module opaque.

        Raises:
            PliantError: it is the network's own forward that fails, or the model itself does not run.
        """
        stack, reason, line = failed.called, failed.problem.partition(", so ")[0], failed.where or ""
        if isinstance(failed.__cause__, Unsteady):
            key = failed.__cause__.key
            offence, stack = self.offences.pop(key), self.stacks[key]
            stack, reason, line = stack[: stack.index(key)], offence.reason, offence.line
        usable = [key for key in stack if key not in self.offences and can_stand_alone(self.model, key)]
        if not usable or not self._runs(self.inputs):
            raise PliantError(failed.problem, where=failed.where, fix=failed.fix) from failed.__cause__
        key = usable[-1]
        for inner in [other for other in self.offences if other.startswith((f"{key}.", f"{key}:"))]:
            del self.offences[inner]
        self.offences[key], self.stacks[key] = Offence(reason, line), list(stack)

    def _runs(self, inputs: Sequence[Tensor]) -> bool:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._wrapped(training=False, whole=True)(*[tensor.clone() for tensor in inputs])
        except Exception:  # whatever it is, it is the network's own and was told before
            return False
        return True

    def _wrapped(self, *, training: bool, whole: bool = False) -> Wrapped:
        """A copy of the model under flat arguments; its parameters are the model's own unless `whole`."""
        net = _ready(self.model, shared=() if whole else self.model.parameters())
        return Wrapped(net, self.form, self.call, whole=whole).train(training)

    def _free(self) -> list[tuple[int, ...]]:
        """The axes of each input whose size is left open."""
        axes = zip(self.inputs, self.length, self.asked, strict=True)
        return [tuple(sorted({*range(min(tensor.dim(), 1)), *length, *asked})) for tensor, length, asked in axes]

    def _shorter(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs half as long: that costs less than longer ones, and positions are not used up."""
        found = list(inputs)
        for i, axes in enumerate(self.length):
            for axis in axes:
                found[i] = found[i].narrow(axis, 0, max(found[i].shape[axis] // 2, 2))
        return found

    def _grown(self) -> list[set[int]]:
        """The axes of each input that can be longer."""
        axes = zip(self.batch, self.length, self.asked, strict=True)
        return [{*batch, *length, *asked} for batch, length, asked in axes]

    def export(self, *, training: bool, inputs: Sequence[Tensor] | None = None) -> Program:
        """One export.

        Raises:
            PliantError: torch.export refuses the model.
        """
        given = tuple(self.inputs if inputs is None else inputs)
        wrapped = self._wrapped(training=training)
        free = [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in self._free()]
        try:
            wrapped.hide(self.offences, [given, more_rows(given, self._grown()), other_values(given)])
            with _quiet():
                exported = _with_gradients(
                    wrapped,
                    given,
                    lambda: torch.export.export(wrapped, given, dynamic_shapes=(tuple(free),), strict=False),
                )
                module = exported.module()
        except Exception as error:  # torch raises many kinds here; every one is re-raised with the user's line
            raise _refusal(error, called_parts(error, wrapped.net)) from error
        finally:
            wrapped.forget()
        program = Converter(wrapped, module).program()
        for path, opaque in program.opaque.items():  # the model's own in the place of the trace's copy
            program.opaque[path] = replace(opaque, module=opaque_part(self.model, path))
        return program


def _is_sequence(tensor: Tensor) -> bool:
    """Whether axis 1 may be a sequence's: tokens [N, T], features [N, T, C]."""
    return tensor.dim() == (3 if tensor.is_floating_point() else 2) and tensor.shape[1] > 1


def _states(model: nn.Module, program: Program) -> dict[str, Tensor]:
    """The tensors of a model that a program reads."""
    found = {}
    for node in program.states:
        constant = program.constants.get(node.target)
        found[node.target] = find_attribute(model, node.target) if constant is None else constant
    return found


class _Failed(PliantError):
    """An export that failed, and the modules that were being called then."""

    called: Sequence[str] = ()


def _writes_parameters(model: nn.Module, program: Program) -> bool:
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    owned = {node.name for node in program.states if node.target in names}
    return any(writes_state(node) and any(ref.name in owned for ref in refs(node.args[:1])) for node in program)


def _ready(model: nn.Module, shared: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A copy that returns tensors only: Hugging Face models give out their key/value cache unless told not to."""
    model = copied(model, {id(parameter): parameter for parameter in shared})
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False  # type: ignore[union-attr]
        inner = compiled_from(module)
        if inner is not None:
            module.__dict__["forward"] = inner.__call__
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter: what goes wrong is told by the error.

    Python's collector rests: an export makes millions of objects, and looking through them all takes a tenth of it.
    """
    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # export prints half-made graphs
            warnings.simplefilter("ignore")
            yield
    finally:
        if collects:
            gc.enable()
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _with_gradients(model: nn.Module, inputs: Iterable[Tensor], export: Callable[[], Any]) -> Any:
    """What `export` gives; once more where the network writes gradients itself, so that they are kept."""
    gradients = Gradients()
    with gradients.watching():
        exported = export()
    if not gradients.met:
        return exported
    with gradients.judging(), torch.random.fork_rng(devices=[]):
        model(*inputs)
    with gradients.keeping():
        return export()


def _refusal(error: Exception, called: Sequence[str]) -> _Failed:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    where = f"{frames[-1].filename}:{frames[-1].lineno} `{frames[-1].line}`" if frames else None
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, PliantError):
        failed = _Failed(error.problem, where=error.where or where, fix=error.fix)
    elif "data-dependent" in text or "DataDependent" in type(error).__name__:
        failed = _Failed(
            "this line decides by the values of a tensor, so the network is not one graph",
            where=where,
            fix="trace the part without the decision, or write it with torch.where",
        )
    else:
        fix = "check that model(example) runs; tensors must come in as arguments and sizes must not depend on values"
        problem = f"torch.export cannot trace this network ({type(error).__name__}: {text[:300]})"
        failed = _Failed(problem, where=where, fix=fix)
    failed.called = called
    return failed
