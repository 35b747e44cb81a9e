"""Files that are either there whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pliant.core.errors import PliantError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk answers that takes no more; other errors of a block are the block's own."""


def _explain(error: OSError, path: Path) -> PliantError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space or choose another folder" if full else "choose a folder you can write to"
    return PliantError(f"cannot write ({error.strerror or error})", where=str(path), fix=fix)


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Raises:
        PliantError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _explain(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        Path(aside).unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """`write_atomic` of indented JSON. Raises `ValueError` for NaN and infinities, which JSON cannot hold."""
    write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The JSON in a file.

    Raises:
        PliantError: the file is missing or holds no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise PliantError("no such file", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise PliantError(f"not readable as JSON ({error})", where=str(path)) from error


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: where the folder shall be.
        replace: whether a folder that is there already is replaced.

    Raises:
        PliantError: `path` exists and `replace` is false, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise PliantError("exists already", where=str(path), fix="choose another folder or remove this one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _explain(error, path) from error
    try:
        yield aside
        _rename(aside, path)
    except OSError as error:
        if error.errno in _FULL:
            raise _explain(error, path) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename(aside: Path, path: Path) -> None:
    """`aside` becomes `path`; what was there goes only once the new folder is in place."""
    try:
        os.chmod(aside, 0o755)
        old = aside.with_name(aside.name + ".old")
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _explain(error, path) from error
