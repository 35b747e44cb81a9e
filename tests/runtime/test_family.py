"""Choosing and running sub-networks of a loaded artifact."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant_runtime import ArtifactError, Family, load
from pliant_runtime.__main__ import main
from pliant_runtime.grammar import digest_of

Table = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def family(original: Path) -> Family:
    return load(original)


def measured(folder: Path, figures: list[dict[str, float]]) -> Family:
    """The artifact with other measured figures."""
    program = json.loads((folder / "program.json").read_text())
    for entry, values in zip(program["entries"], figures, strict=True):
        entry["measured"] = values
    program["sha256"] = digest_of(program)
    (folder / "program.json").write_text(json.dumps(program))
    return load(folder)


def test_the_best_entry_within_the_budget_is_taken(copied: Path) -> None:
    found = measured(copied, [{"accuracy": 0.7, "latency_ms": 1.0}, {"accuracy": 0.9, "latency_ms": 2.0}])
    assert found.choose() == 1
    assert found.choose(budget_ms=2.0) == 1
    assert found.choose(budget_ms=1.9) == 0
    with pytest.raises(ValueError, match=r"no sub-network takes 0.5 ms or less; the fastest takes 1 ms"):
        found.choose(budget_ms=0.5)


def test_a_larger_entry_that_is_no_better_is_not_taken(copied: Path) -> None:
    found = measured(copied, [{"accuracy": 0.9, "latency_ms": 1.0}, {"accuracy": 0.9, "latency_ms": 2.0}])
    assert found.choose(budget_ms=5) == 0


def test_without_quality_the_slowest_that_fits_is_the_largest(copied: Path) -> None:
    found = measured(copied, [{"latency_ms": 1.0}, {"latency_ms": 2.0}])
    assert found.choose() == 1
    assert found.choose(budget_ms=1.5) == 0


def test_without_latency_a_budget_is_refused(copied: Path) -> None:
    found = measured(copied, [{"accuracy": 0.7}, {"accuracy": 0.9}])
    with pytest.raises(ValueError, match="no latency was measured"):
        found.run(np.zeros((1, 6), dtype=np.uint8), budget_ms=1.0)


def test_entries_are_found_by_config_and_number(family: Family, table: Table) -> None:
    rows = table[0][:4]
    small, large = (dict(entry.config) for entry in family.entries)
    np.testing.assert_array_equal(family.run(rows, config=small), family.run(rows, entry=0))
    assert not np.array_equal(family.run(rows, config=small), family.run(rows, config=large))
    with pytest.raises(ValueError, match="no sub-network has the config"):
        family.run(rows, config={"width:none": 1})
    with pytest.raises(ValueError, match="entry must be from 0 to 1, got 2"):
        family.run(rows, entry=2)
    with pytest.raises(ValueError, match="only one of them"):
        family.run(rows, entry=0, config=small)
    with pytest.raises(ValueError, match="not both"):
        family.run(rows, budget_ms=1.0, config=small)


def test_any_number_of_rows_is_answered(family: Family, table: Table) -> None:
    whole = family.run(table[0][:7])
    assert whole.shape == (7, 3)
    assert whole.dtype == np.float32
    for row in range(7):
        np.testing.assert_allclose(family.run(table[0][row : row + 1])[0], whole[row], atol=1e-5)


def test_classes_have_names(family: Family, table: Table) -> None:
    names = family.classify(table[0][:20])
    logits = family.run(table[0][:20])
    assert names == [family.signature.classes[index] for index in logits.argmax(1)]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "prepared, not raw": (np.zeros((2, 6), dtype=np.float32), TypeError, "takes uint8, got float32.*preprocessed=True"),
    "shape": (np.zeros((2, 5), dtype=np.uint8), ValueError, r"takes raw samples \[N, 6\] .*got \[2, 5\]"),
    "no batch": (np.zeros(6, dtype=np.uint8), ValueError, r"got \[6\]"),
    "tuple": ((np.zeros((2, 6), dtype=np.uint8),), TypeError, "takes one array, got a tuple"),
    "dict": ({"input": np.zeros((2, 6), dtype=np.uint8)}, TypeError, "takes one array, got a dict"),
    "text": (["a", "b"], TypeError, "takes uint8, got a list of"),
    "ragged": ([[1, 2], [3]], ValueError, "no regular array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_refused_with_what_to_give(family: Family, case: str) -> None:
    inputs, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        family.run(inputs)


def test_wrong_prepared_inputs_are_refused(family: Family) -> None:
    with pytest.raises(TypeError, match=r"takes float32, got float64: convert it with .astype\('float32'\)"):
        family.run(np.zeros((2, 6)), preprocessed=True)
    with pytest.raises(ValueError, match=r"takes the shape \[N, 6\], got \[2, 7\]"):
        family.run(np.zeros((2, 7), dtype=np.float32), preprocessed=True)


def test_python_numbers_are_taken(family: Family) -> None:
    rows = [[0.0, 1, 2, 3, 4, 5]]
    got = family.run(rows, preprocessed=True)
    np.testing.assert_array_equal(got, family.run(np.array(rows, dtype=np.float32), preprocessed=True))


def test_sessions_are_made_when_first_needed_or_on_demand(original: Path) -> None:
    family = load(original)
    assert family._executor._sessions == {}
    family.run(np.zeros((1, 6), dtype=np.uint8), entry=1)
    assert set(family._executor._sessions) == {(1, False)}
    family.prepare()
    assert set(family._executor._sessions) == {(0, False), (1, False)}


def test_threads_are_set_and_checked(original: Path) -> None:
    family = load(original, threads=2)
    options = family._executor.session(0).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        load(original, threads=0)


def test_the_digest_tells_one_artifact_from_another(original: Path, copied: Path) -> None:
    digest = load(original).digest
    assert load(copied, sha256=digest).digest == digest
    measured(copied, [{"accuracy": 1.0}, {"accuracy": 1.0}])
    with pytest.raises(ArtifactError, match=r"program.json: has the digest .* expected"):
        load(copied, sha256=digest)


def test_stored_rows_are_answered_as_recorded(family: Family) -> None:
    gaps = family.check()
    assert set(gaps) == {0, 1}
    assert max(gaps.values()) < 1e-4


def test_another_answer_than_recorded_is_found(copied: Path) -> None:
    program = json.loads((copied / "program.json").read_text())
    entries = program["entries"]
    entries[0]["check"]["outputs"] = entries[1]["check"]["outputs"]
    program["sha256"] = digest_of(program)
    (copied / "program.json").write_text(json.dumps(program))
    with pytest.raises(ArtifactError, match=r"\.onnx: entry 0 differs by .* from what was recorded"):
        load(copied).check()


def test_the_command_line_shows_checks_and_runs(
    original: Path, table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*arguments: str) -> Any:
        assert main([str(original), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    info = ask("--info")
    assert info["inputs"] == ["input: float32[N, 6]"]
    assert info["raw"] == "uint8[N, 6] (layout NF)"
    assert len(info["entries"]) == 2
    assert set(ask("--check")["checked"]) == {"0", "1"}
    np.save(tmp_path / "rows.npy", table[0][:3])
    answer = ask(str(tmp_path / "rows.npy"), "--entry", "1", "--out", str(tmp_path / "out.npy"))
    assert answer["classes"] == load(original).classify(table[0][:3], entry=1)
    assert np.load(tmp_path / "out.npy").shape == (3, 3)


def test_the_command_line_explains_failures_in_one_line(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((2, 5), dtype=np.uint8))
    for arguments in ([str(tmp_path)], [str(original), str(tmp_path / "rows.npy")], [str(original), "none.npy"]):
        assert main(arguments) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1


def test_nothing_of_torch_is_imported(original: Path, table: Table, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", table[0][:3])
    script = (
        "import sys; sys.modules['torch'] = None; from pliant_runtime import load; import numpy\n"
        "family = load(sys.argv[1]); print(*family.classify(numpy.load(sys.argv[2])))\n"
        "strange = {name.partition('.')[0] for name in sys.modules} & {'pliant', 'onnx', 'onnxscript', 'safetensors'}\n"
        "assert not strange, strange"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(original), str(tmp_path / "rows.npy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == load(original).classify(table[0][:3])
