"""Module to ONNX: the fast exporter, the other as fallback, and a check of either against torch."""

import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn

from pliant.core import PliantError, call, seeded
from pliant.core._torch_private import no_onnx_log
from pliant.core.calls import map_tensors
from pliant.export import resize
from pliant.export.onnx_model import OnnxModel
from pliant.export.operators import run_and_inspect, threads_of
from pliant.export.structure import Flat, InputForm, flatten, output_names
from pliant.export.traceable import traceable
from pliant.export.weights import tidy
from pliant.graph.ir import call_opaque
from pliant_runtime.gaps import gap
from pliant_runtime.sessions import new_session

_BATCH = "N"
_TRACE_ROWS = 2


def to_onnx(
    module: nn.Module,
    example: Any,
    *,
    path: str | Path | None = None,
    check: bool = True,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> OnnxModel:
    """Export a module in evaluation mode, with a free batch axis, and prove that onnxruntime computes the same.

    `torch.onnx.export(dynamo=False)` comes first (10 to 90 times faster), the dynamo exporter second; a result that
    cannot be loaded or differs from torch does not count. Parameters and buffers keep their `state_dict` names and
    their values: BatchNorm is not folded into convolutions, nothing is folded at all (onnxruntime does it at load).

    Args:
        module: any module, often a `torch.fx.GraphModule`; not changed. Exported on the CPU, in evaluation mode.
        example: a tensor, a tuple (positional) or a dict (keyword) of tensors whose axis 0 is the batch. It should be
            real data: the check runs on it, on random rows like it, and at two batch sizes other than the traced one.
        path: where to write the `.onnx` file; None writes none.
        check: whether the result is compared with torch.
        tolerance: largest difference allowed, relative to the largest magnitude of the same output tensor; integer and
            boolean outputs must be equal.
        seed: of the random rows.

    Returns:
        The model; `errors` holds the differences found.

    Raises:
        PliantError: an operator known to export wrongly, or neither exporter gives a network equal to the module.
    """
    _refuse_opaque(module)
    form = InputForm(map_tensors(lambda tensor: tensor.detach().cpu(), example))
    with evaluated(module) as net, torch.no_grad():
        output, max_threads = run_and_inspect(net, form.rows(_TRACE_ROWS))
        tensors, structure = flatten(output)
        names = output_names(structure)
        failures: list[str] = []
        for exporter, write in (("legacy", _legacy), ("dynamo", _dynamo)):
            try:
                proto = write(net, form, names, tensors)
                tidy(proto, "net.", set(net.state_dict()))
                state = frozenset(net.state_dict())
                model = OnnxModel(
                    proto, form, tuple(names), structure, exporter, state, max_threads or threads_of(proto)
                )
                if check:
                    model = _checked(model, net, tolerance, seed)
            except Exception as error:  # exporters raise anything; the other one may still succeed, else all is told
                failures.append(f"{exporter} exporter: {_reason(error)}")
                continue
            if path is not None:
                model.save(path)
            return model
    raise PliantError(
        "; ".join(failures),
        where=type(module).__name__,
        fix="write the operator named here with others, or check that axis 0 of every input is the batch",
    )


def _refuse_opaque(module: nn.Module) -> None:
    """Raises PliantError where a part of an extracted network runs as Python: a trace would hold one of its ways."""
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            if node.target is call_opaque:
                path = str(node.args[0].target)
                raise PliantError(
                    f"{path} runs as it is, because it cannot be traced, and has no ONNX form",
                    where=type(part).__name__,
                    fix="rewrite it with tensor operators (torch.where), or export the parts around it",
                )


@contextmanager
def evaluated(module: nn.Module) -> Iterator[nn.Module]:
    """The module (or a copy on the CPU) in evaluation mode and fit for tracing; afterwards it is as it was."""
    modes = {part: part.training for part in module.modules()}
    devices = {tensor.device for tensor in [*module.parameters(), *module.buffers()]}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # Graphs of torch.export refuse eval(): their mode is burnt in.
        with suppress(NotImplementedError):
            module.eval()
        # The fused transformer layer has no ONNX form.
        torch.backends.mha.set_fastpath_enabled(False)
        local = all(device.type == "cpu" for device in devices)
        with quiet():
            net = traceable(module if local else copy.deepcopy(module).cpu())
        yield net
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        with suppress(NotImplementedError):
            module.train(modes[module])
        for part, training in modes.items():
            part.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines: what goes wrong in an exporter is found by the check, and told by it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), no_onnx_log():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _legacy(net: nn.Module, form: InputForm, names: list[str], outputs: list[torch.Tensor]) -> Any:
    try:
        return _traced(net, form, names, outputs, 17)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        if resize.OPERATOR not in str(error):
            raise
    resize.allow_antialias()
    return _traced(net, form, names, outputs, resize.OPSET)


def _traced(net: nn.Module, form: InputForm, names: list[str], outputs: list[torch.Tensor], opset: int) -> Any:
    buffer = io.BytesIO()
    free: dict[str, int] = {}
    if form.batched:
        more = flatten(call(net, form.rows(_TRACE_ROWS + 1)))[0]
        free = dict.fromkeys(form.names, 0)
        free |= {n: _batch_axis(one, other) for n, one, other in zip(names, outputs, more) if one.ndim}
    axes = {name: {axis: _BATCH} for name, axis in free.items()}
    with quiet():
        torch.onnx.export(
            Flat(net, form),
            tuple(form.tensors(form.rows(_TRACE_ROWS))),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            # EVAL would fold BatchNorm into convolutions; the module is in evaluation mode by itself.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=list(form.names),
            output_names=list(names),
            dynamic_axes=axes,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def _batch_axis(one: torch.Tensor, other: torch.Tensor) -> int:
    """The first axis that grows with the batch; 0 where none does."""
    return next((axis for axis, (a, b) in enumerate(zip(one.shape, other.shape)) if a != b), 0)


def _dynamo(net: nn.Module, form: InputForm, names: list[str], outputs: list[torch.Tensor]) -> Any:
    inputs = tuple(form.tensors(form.rows(_TRACE_ROWS)))
    with quiet():
        program = torch.onnx.export(
            Flat(net, form),
            inputs,
            dynamo=True,
            verbose=False,
            optimize=False,  # it folds BatchNorm and drops names
            input_names=list(form.names),
            output_names=list(names),
            dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} if form.batched else {} for _ in inputs),),
        )
    if program is None:
        raise PliantError("the exporter returned nothing")
    return program.model_proto


def _checked(model: OnnxModel, net: nn.Module, tolerance: float, seed: int) -> OnnxModel:
    session = new_session(model.to_bytes())
    worst = {"max_abs": 0.0, "max_rel": 0.0}
    generator = seeded(seed, "to_onnx")
    cases: list[tuple[str, Callable[[], Any]]] = [
        (f"{kind} input, batch {rows}", lambda make=make, rows=rows: make(rows))  # type: ignore[misc]
        for rows in (1, 3)
        for kind, make in (("example", model.form.rows), ("random", lambda n: model.form.random(n, generator)))
    ]
    for what, make in cases:
        inputs = make()
        wanted = flatten(run_and_inspect(net, inputs)[0])[0]
        got = session.run(list(model.outputs), model.feeds(inputs))
        for name, one, other in zip(model.outputs, wanted, got, strict=True):
            found = difference(one.detach().numpy(), np.asarray(other), f"output {name!r}, {what}", tolerance)
            worst = {key: max(worst[key], found[key]) for key in worst}
    return OnnxModel(**{**vars(model), "errors": worst})


def difference(wanted: Any, got: Any, what: str, tolerance: float) -> dict[str, float]:
    """Largest absolute difference, and the same relative to the largest magnitude of `wanted`.

    Raises:
        PliantError: another shape or dtype, a NaN on one side only, or a relative difference above the tolerance.
    """
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise PliantError(f"{what} is {got.dtype}{list(got.shape)}, torch gives {wanted.dtype}{list(wanted.shape)}")
    largest, relative = gap(wanted, got)
    exact = wanted.dtype.kind not in "fc"
    if not relative <= (0.0 if exact else tolerance):  # also true for NaN
        raise PliantError(f"{what} differs from torch by {largest:.3g} ({relative:.2g} of its largest magnitude)")
    return {"max_abs": largest, "max_rel": relative}


def _reason(error: BaseException) -> str:
    """The first line of what an exporter failed of in the end, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__} {lines[0][:300] if lines else ''}".strip()
