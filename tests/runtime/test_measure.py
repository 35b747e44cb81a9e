"""`pliant-runtime measure`: probes that were written elsewhere describe this machine, or are refused."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pliant_runtime.__main__ import main
from pliant_runtime.errors import ArtifactError
from pliant_runtime.probes import Description, Probe, Reading, measure, read_description, read_probes, write_probes


def graph(size: int, kind: str = "MatMul") -> bytes:
    float32 = TensorProto.FLOAT
    sides: list[tuple[str, list[str | int | None]]] = [("x", ["N", size]), ("w", [size, size])]
    takes = [helper.make_tensor_value_info(name, float32, shape) for name, shape in sides]
    gives = helper.make_tensor_value_info("y", float32, ["N", size])
    model = helper.make_model(
        helper.make_graph([helper.make_node(kind, ["x", "w"], ["y"])], "probe", takes, [gives]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    return bytes(model.SerializeToString())


def folder(path: Path) -> Path:
    sizes = {"operator": (8,), "whole": (16, 64, 128), "check": (32, 96)}
    probes = [Probe(f"{role} {n}", role, graph(n), f"MatMul {n}\n") for role, each in sizes.items() for n in each]
    return write_probes(probes, path)


def test_probes_are_measured_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here.hardware.json"
    assert main(["measure", str(folder(tmp_path / "probes")), "--out", str(out), "--seconds", "0.1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["written"], printed["probes"]) == (str(out), 6)
    found = read_description(out)
    assert [reading.name for reading in found.measured][:2] == ["operator 8", "whole 16"]
    assert all(reading.median_ms > 0 and reading.text.startswith("MatMul") for reading in found.measured)
    assert found.threads == 1
    assert found.noise >= 0.01
    assert "onnxruntime" in found.machine


def test_probes_survive_writing_and_reading(tmp_path: Path) -> None:
    found = read_probes(folder(tmp_path))
    assert [probe.role for probe in found] == ["operator", *["whole"] * 3, *["check"] * 2]
    onnx.checker.check_model(onnx.load_model_from_string(found[0].graph))


def test_changed_graphs_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path)
    (tmp_path / "0002.onnx").write_bytes(graph(4))
    with pytest.raises(ArtifactError, match=r"0002\.onnx: is not the file .* SHA-256 differs"):
        read_probes(tmp_path)
    assert main(["measure", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "reads version 1"),
        ({"format": "pliant-artifact"}, "must be one of pliant-probes"),
        ({"probes": []}, "1 to 10000 items"),
        ({"more": 1}, "unknown member"),
    ],
)
def test_probes_of_another_kind_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = folder(tmp_path) / "probes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        read_probes(tmp_path)


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path) / "probes.json"
    content = json.loads(path.read_text())
    content["probes"][0]["file"] = "../secret.onnx"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="plain file name"):
        read_probes(tmp_path)


def test_graphs_that_do_not_run_here_are_named(tmp_path: Path) -> None:
    probes = [Probe("good", "whole", graph(8), ""), Probe("bad", "check", graph(8, "NoSuchOperator"), "")]
    with pytest.raises(ArtifactError, match="bad: does not run here"):
        measure(probes, seconds=0.05)
    with pytest.raises(ValueError, match="role 'check'"):
        measure(probes[:1])


def test_probes_without_sense_are_not_written(tmp_path: Path) -> None:
    probe = Probe("a", "whole", graph(8), "")
    with pytest.raises(ValueError, match="each name once"):
        write_probes([probe, probe], tmp_path)
    with pytest.raises(ValueError, match="role of a probe"):
        write_probes([Probe("a", "other", graph(8), "")], tmp_path)


def test_descriptions_survive_and_are_checked(tmp_path: Path) -> None:
    reading = Reading("a", "whole", "MatMul", 0.5, 0.0)
    made = Description("a machine", 4, 0.02, 3.0, (reading,))
    path = made.save(tmp_path / "a.hardware.json")
    assert read_description(path) == made
    content = json.loads(path.read_text())
    content["measured"][0]["median_ms"] = -1.0
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"measured\[0\]\.median_ms must be at least"):
        read_description(path)


def test_wrong_usage_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--threads", "0"], ["--seconds", "-1"]):
        with pytest.raises(SystemExit) as error:
            main(["measure", str(tmp_path), "--out", "x", *arguments])
        assert error.value.code == 2
    assert "must be" in capsys.readouterr().err
