"""One test per private torch name in `pliant/core/_torch_private.py`: a new torch that breaks one is told here."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core._torch_private import is_overload, no_onnx_log, rebuild, tree_leaves


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


torch.export.register_dataclass(Output, serialized_type_name="pliant.tests.Output")


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"b": (x + 1, [x + 2, None]), "a": Output(x + 3, x + 4)}


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    return torch.export.export(Nested(), (torch.zeros(2),))


def test_rebuild_gives_back_what_a_module_returned(exported: torch.export.ExportedProgram) -> None:
    def named(keys: list[str], children: list[Any]) -> dict[str, Any]:
        return {"named": dict(zip(keys, children, strict=True))}

    spec = exported.call_spec.out_spec
    assert spec is not None
    leaves: list[Any] = list(range(spec.num_leaves))
    built = rebuild(leaves, spec, named)
    assert list(built) == ["b", "a"]
    assert isinstance(built["b"], tuple)
    assert isinstance(built["b"][1], list)
    assert built == {"b": (0, [1, 2]), "a": {"named": {"logits": 3, "hidden": 4}}}
    assert leaves == []


def test_leaves_come_in_torchs_own_order(exported: torch.export.ExportedProgram) -> None:
    leaves = tree_leaves(Nested()(torch.zeros(2)))
    assert [None if leaf is None else int(leaf[0]) for leaf in leaves] == [1, 2, None, 3, 4]
    spec = exported.call_spec.out_spec
    assert spec is not None
    assert len(leaves) == spec.num_leaves


def test_overloads_are_told_from_other_callables(exported: torch.export.ExportedProgram) -> None:
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets
    assert all(is_overload(target) for target in targets)
    assert not any(is_overload(target) for target in (torch.ops.aten.add, torch.add, "add", len))


def test_a_failing_onnx_export_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Sinc(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sinc(x)

    with no_onnx_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.onnx.errors.UnsupportedOperatorError):
            torch.onnx.export(Sinc(), (torch.zeros(2),), str(tmp_path / "net.onnx"), dynamo=False, opset_version=17)
    assert capfd.readouterr().out == ""
