import errno
import hashlib
import os
from pathlib import Path

import pytest

from pliant.core import PliantError, atomic_folder, read_json, sha256_file, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_atomic(path, "old")
    write_atomic(str(path), b"new \xff")
    assert path.read_bytes() == b"new \xff"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["c.txt"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        PliantError, match=r"a\.txt: cannot write \(No space left on device\)\. free some space"
    ) as info:
        write_atomic(path, "new")
    assert info.value.where == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A path below a file is refused to everybody, also to root, who may write into a read-only folder.
    (tmp_path / "file").write_text("")
    with pytest.raises(PliantError, match=r"a\.txt: cannot write \(File exists\)\. choose a folder"):
        write_atomic(tmp_path / "file" / "a.txt", "new")
    with (
        pytest.raises(PliantError, match=r"cannot write \(Not a directory\)\. choose a folder you can write to"),
        atomic_folder(tmp_path / "file" / "folder" / "a"),
    ):
        pytest.fail("the block must not run")
    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(PliantError, match=r"Read-only file system\)\. choose a folder you can write to"):
        write_atomic(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["file"]


def test_json_there_and_back(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, True], "b": {"c": "é"}}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": value})
    assert names(tmp_path) == []


def test_unreadable_json(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match=r"a\.json: no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(PliantError, match=r"a\.json: not readable as JSON \(Expecting value"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PliantError, match="not readable as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(PliantError, match="not readable as JSON"):
        read_json(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_folder_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    with atomic_folder(path) as aside:
        (aside / "x").write_text("1")
        assert not path.exists()
        assert aside.parent == path.parent
    assert (path / "x").read_text() == "1"
    assert path.stat().st_mode & 0o777 == 0o755
    assert names(path.parent) == ["a"]


def test_a_folder_vanishes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), atomic_folder(tmp_path / "a") as aside:
        (aside / "x").write_text("1\ud800", encoding="utf-8")
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept_unless_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").write_text("")
    with pytest.raises(PliantError, match=r"exists already\. choose another folder or remove"), atomic_folder(path):
        pytest.fail("the block must not run")
    assert names(path) == ["old"]
    with atomic_folder(path, replace=True) as aside:
        (aside / "new").write_text("")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["a"]
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(path, replace=True):
        raise RuntimeError("stop")
    assert names(path) == ["new"]


def test_a_disk_that_fills_up_inside_the_block(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match="No space left on device"), atomic_folder(tmp_path / "a"):
        full_disk()
    assert names(tmp_path) == []
