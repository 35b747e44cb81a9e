"""A network as ONNX, with what is needed to run it and to know how far it may be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from pliant.core import write_atomic
from pliant.export.structure import InputForm
from pliant.export.weights import initializers
from pliant_runtime.executor import build
from pliant_runtime.sessions import new_session


@dataclass(frozen=True)
class OnnxModel:
    """What `to_onnx` returns.

    Args:
        proto: the `onnx.ModelProto`, weights inside, under their `state_dict` names.
        form: names and kind of the inputs, and the example they came from.
        outputs: names of the output tensors.
        structure: how the output tensors are put back together (see `pliant.export.structure`).
        exporter: which exporter made it: "legacy" or "dynamo".
        state_names: names of the network's `state_dict`.
        max_threads: largest number of threads on which it is known to be right; None for any.
        errors: largest difference to torch over all checks, `max_abs` and `max_rel`; empty when not checked.
    """

    proto: Any = field(repr=False)
    form: InputForm = field(repr=False)
    outputs: tuple[str, ...]
    structure: Mapping[str, Any] = field(repr=False)
    exporter: str
    state_names: frozenset[str] = field(repr=False)
    max_threads: int | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input tensors the graph uses, a subset of the example's."""
        return tuple(value.name for value in self.proto.graph.input)

    @property
    def nodes(self) -> int:
        """How many operators the graph has."""
        return len(self.proto.graph.node)

    def to_bytes(self) -> bytes:
        """The serialized model."""
        return bytes(self.proto.SerializeToString())

    def save(self, path: str | Path) -> Path:
        """Write one self-contained `.onnx` file, whole or not at all."""
        write_atomic(path, self.to_bytes())
        return Path(path)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Every initializer by name."""
        return initializers(self.proto)

    def session(self, *, threads: int = 1) -> ort.InferenceSession:
        """An onnxruntime session on the CPU; `max_threads` is respected."""
        return new_session(self.to_bytes(), threads=min(threads, self.max_threads or threads))

    def feeds(self, inputs: Any) -> dict[str, NDArray[Any]]:
        """The arrays a session of this model takes, from inputs of the example's form."""
        tensors = dict(zip(self.form.names, self.form.tensors(inputs)))
        return {name: np.ascontiguousarray(tensors[name].detach().cpu().numpy()) for name in self.inputs}

    def run(self, inputs: Any, session: ort.InferenceSession | None = None) -> Any:
        """The network's output for inputs of the example's form, computed by onnxruntime, as CPU tensors."""
        arrays = (session or self.session()).run(list(self.outputs), self.feeds(inputs))
        return map_arrays(build(self.structure, arrays))


def map_arrays(value: Any) -> Any:
    """Tensors in place of the arrays in tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: map_arrays(item) for name, item in value.items()}
    return type(value)(map_arrays(item) for item in value) if isinstance(value, tuple | list) else value
