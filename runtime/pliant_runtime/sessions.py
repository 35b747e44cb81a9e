"""onnxruntime sessions, with the options everything is measured with."""

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort


def new_session(graph: bytes, *, threads: int = 1, weights: Mapping[str, Any] | None = None) -> ort.InferenceSession:
    """A CPU session on `threads` threads that do not spin while they wait.

    One operator runs at a time (`inter_op = 1`). Spinning threads would take the core from whatever else runs, and
    from the next candidate when several are timed side by side.

    Args:
        graph: a serialized ONNX model.
        threads: threads of one operator.
        weights: values of its external initializers, as `OrtValue`s; they must outlive the session.

    Raises:
        ValueError: `threads` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; the log would only repeat them
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
