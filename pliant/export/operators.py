"""Operators that exporters or onnxruntime get wrong without saying so.

Found by measurement with torch 2.13 and onnxruntime 1.31: `scatter_reduce` with `mean` is written as a scatter that
overwrites (errors of 0.2 to 1.0), and additions into repeated indices (`index_add`, `index_put(accumulate=True)`)
become `ScatterND(add)`, which loses updates when onnxruntime uses more than one thread. An `embedding_bag` ends the
process with a segmentation fault at another batch size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from pliant.core import PliantError, call


@dataclass(frozen=True)
class Trap:
    """One operator that must not be exported as it is.

    Args:
        when: whether a call with these arguments is affected.
        problem: what goes wrong.
        fix: the way out; None where running on one thread is the way out and enough.
    """

    when: Callable[[tuple[Any, ...], Mapping[str, Any]], bool]
    problem: str
    fix: str | None = None


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return kwargs[name] if name in kwargs else (args[position] if len(args) > position else None)


def _takes_mean(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(_argument(args, kwargs, 4, "reduce") == "mean")


def _accumulates(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(_argument(args, kwargs, 3, "accumulate"))


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return True


_RACE = "adds into repeated indices, where onnxruntime loses updates on more than one thread"

TRAPS: dict[str, Trap] = {
    "scatter_reduce": Trap(
        _takes_mean,
        "reduce='mean' is exported as a scatter that overwrites, with wrong results",
        "write it as scatter_reduce 'sum' of the values divided by scatter_reduce 'sum' of ones",
    ),
    "index_reduce": Trap(
        _always, "has no correct ONNX form", "use scatter_reduce with 'sum', 'amax', 'amin' or 'prod'"
    ),
    "embedding_bag": Trap(
        _always,
        "has no ONNX form that holds: onnxruntime dies of what the exporter writes",
        "write it as an embedding and a sum or mean over the words",
    ),
    "index_add": Trap(_always, _RACE),
    "index_put": Trap(_accumulates, _RACE),
}


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.met: dict[str, Trap] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", "")).partition(".")[0].rstrip("_")
        trap = TRAPS.get(name)
        if trap is not None and trap.when(args, kwargs or {}):
            self.met[name] = trap
        return func(*args, **(kwargs or {}))


def run_and_inspect(net: nn.Module, inputs: Any) -> tuple[Any, int | None]:
    """Run the network and look at the operators it calls.

    Returns:
        The output, and the largest number of threads the exported network may use (None: any).

    Raises:
        PliantError: an operator of the table that exports wrongly; the message names it and the way out.
    """
    with _Recorder() as recorder:
        output = call(net, inputs)
    for name, trap in recorder.met.items():
        if trap.fix is not None:
            raise PliantError(trap.problem, where=f"operator {name}", fix=trap.fix)
    return output, (1 if recorder.met else None)


def threads_of(proto: Any) -> int | None:
    """The largest number of threads on which an ONNX model is right: 1 where it adds by `ScatterND`, None for any."""
    return 1 if _adds_by_scatter(proto.graph) else None


def _adds_by_scatter(graph: Any) -> bool:
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "ScatterND" and attribute.name == "reduction" and attribute.s == b"add":
                return True
            inner = [attribute.g] if attribute.HasField("g") else []
            if any(_adds_by_scatter(part) for part in [*inner, *attribute.graphs]):
                return True
    return False
