"""History: what a training recorded, in memory and as `metrics.jsonl`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pliant.core import PliantError


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; `seconds` and `cpu_seconds` count from the start of the training."""

    step: int
    epoch: int
    loss: float
    lr: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean training loss, and the validation metric (None without validation data)."""

    step: int
    epoch: int
    loss: float
    metric: str
    val: float | None
    seconds: float
    cpu_seconds: float


@dataclass
class History:
    """Everything a training recorded, resumed parts included.

    Args:
        steps: one record per optimizer step.
        epochs: one record per epoch.
    """

    steps: list[StepRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall seconds of all training steps: forward, backward, update and data; no validation, no checkpoints."""
        return self._last.seconds if self._last else 0.0

    @property
    def cpu_seconds(self) -> float:
        """Process CPU seconds of all training steps, of all threads; counted like `seconds`."""
        return self._last.cpu_seconds if self._last else 0.0

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last epoch."""
        return self.epochs[-1].loss if self.epochs else None

    @property
    def val(self) -> float | None:
        """Validation metric after the last epoch."""
        return self.epochs[-1].val if self.epochs else None

    @property
    def _last(self) -> StepRecord | None:
        return self.steps[-1] if self.steps else None

    def add(self, line: dict[str, Any]) -> None:
        """Take in one line of `metrics.jsonl`: an epoch when it has a `metric`, else a step."""
        if "metric" in line:
            self.epochs.append(EpochRecord(**line))
        else:
            self.steps.append(StepRecord(**line))

    def __str__(self) -> str:
        if not self.epochs:
            return f"{len(self.steps)} steps"
        last = self.epochs[-1]
        val = "" if last.val is None else f", validation {last.metric} {last.val:.4g}"
        cost = f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} CPU s)"
        return f"{len(self.epochs)} epochs, {last.step} steps, {cost}, loss {last.loss:.4g}{val}"


class Log:
    """The history, written line by line to `metrics.jsonl` where there is a run folder.

    Lines are buffered; `flush` says how many bytes are on the disk, and a resumed training cuts the file there, so that
    no line is there twice or from a part that was lost.

    Args:
        run: the run folder; None keeps the history in memory alone.
        length: bytes that count; what comes after is cut off.

    Raises:
        PliantError: the file cannot be written, or is shorter than `length`.
    """

    def __init__(self, run: Path | None, length: int = 0) -> None:
        self.history = History()
        self._path = None if run is None else run / "metrics.jsonl"
        self._file: BinaryIO | None = None
        if self._path is None:
            return
        try:
            self._path.touch()
            self._file = self._path.open("r+b")
            kept = self._file.read(length)
            self._file.truncate(length)
        except OSError as error:
            raise self._failed(error) from error
        if len(kept) < length:
            self.close()
            fix = "restore it, or delete the run folder to start over"
            raise PliantError(f"{len(kept)} bytes, the checkpoint counts {length}", where=str(self._path), fix=fix)
        for line in kept.splitlines():
            self.history.add(json.loads(line))

    def step(self, record: StepRecord) -> None:
        """Record a step."""
        self.history.steps.append(record)
        self._write(asdict(record))

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch; what was recorded so far reaches the disk."""
        self.history.epochs.append(record)
        self._write(asdict(record))
        self.flush()

    def flush(self) -> int:
        """Bring everything to the disk. Returns the length of the file in bytes."""
        if self._file is None:
            return 0
        try:
            self._file.flush()
            return self._file.tell()
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Flush and close; can be called twice."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise self._failed(error) from error

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> PliantError:
        fix = "free some space or choose another run folder; the last checkpoint stays"
        return PliantError(f"cannot write ({error.strerror or error})", where=str(self._path), fix=fix)
