"""weights.bin: every tensor once, mapped into memory, checked, and cut as the entries need it."""

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.grammar import WEIGHTS, FileFact, Initializer, Stored

Array = NDArray[Any]


class Weights:
    """The stored tensors of an artifact. What is hashed is the very mapping that is used later.

    Args:
        path: the weights.bin.
        fact: its size and hash.
        tensors: what is in it.

    Raises:
        ArtifactError: the file is missing, has another size, or any hash differs.
    """

    def __init__(self, path: Path, fact: FileFact, tensors: Mapping[str, Stored]) -> None:
        self.tensors = tensors
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size != fact.bytes:
                    raise ArtifactError(WEIGHTS, f"has {size} bytes, the program says {fact.bytes}")
                self._bytes: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise ArtifactError(WEIGHTS, f"cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(self._bytes).hexdigest() != fact.sha256:
            raise ArtifactError(WEIGHTS, "was changed after it was written: its SHA-256 differs")
        for stored in tensors.values():
            if hashlib.sha256(self._view(stored)).hexdigest() != stored.sha256:
                raise ArtifactError(WEIGHTS, f"tensor {stored.name!r} differs from its SHA-256")

    def _view(self, stored: Stored) -> memoryview:
        return memoryview(self._bytes)[stored.offset : stored.offset + stored.nbytes]

    def release(self) -> None:
        """Give back the memory of what was read; what is read again comes from the file.

        ONNX Runtime keeps packed copies of the large weights and never looks at the originals again.
        """
        if isinstance(self._bytes, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def tensor(self, name: str) -> Array:
        """A stored tensor: a read-only view of the file."""
        stored = self.tensors[name]
        return np.frombuffer(self._view(stored), dtype=stored.dtype).reshape(stored.shape)

    def cut(self, item: Initializer) -> Array:
        """The piece of a tensor that an entry uses: a view where it is whole or leading, else a copy."""
        array = self.tensor(item.tensor)
        for axis, runs in enumerate(item.ranges or ()):
            if runs is None:
                continue
            pieces = [array[(slice(None),) * axis + (slice(begin, end),)] for begin, end in runs]
            array = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)
        return np.ascontiguousarray(array).reshape(array.shape)
