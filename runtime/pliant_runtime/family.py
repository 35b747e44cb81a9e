"""A family: the sub-networks of one artifact, and the choice among them."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.executor import Executor
from pliant_runtime.gaps import gap
from pliant_runtime.grammar import PROGRAM, WEIGHTS, Entry, Program, Signature, read_program
from pliant_runtime.jsonish import MAX_BYTES
from pliant_runtime.preprocess import arrays_of
from pliant_runtime.references import check_references
from pliant_runtime.weights import Weights

Array = NDArray[Any]


def load(path: str | Path, *, threads: int = 1, sha256: str | None = None) -> "Family":
    """Open an artifact. Everything is checked first: grammar, sizes, hashes; nothing of it is ever unpickled.

    Args:
        path: the artifact's folder.
        threads: threads per network; networks known to be wrong on several run on one.
        sha256: the digest the compiler printed. The hashes inside an artifact catch damage; only this catches somebody
            who changed a file and its hash.

    Raises:
        ValueError: `threads` below 1.
        ArtifactError: no artifact, a damaged one, one of another version, or not the one with this digest.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    folder = Path(path)
    program = read_program(_read(folder, PROGRAM, MAX_BYTES + 1))
    check_references(program)
    if sha256 is not None and program.digest != sha256:
        raise ArtifactError(PROGRAM, f"has the digest {program.digest}, expected {sha256}")
    graphs: dict[str, bytes] = {}
    for name, fact in program.files.items():
        if name == WEIGHTS:
            continue
        content = _read(folder, name, fact.bytes + 1)
        if len(content) != fact.bytes:
            found = "more" if len(content) > fact.bytes else str(len(content))
            raise ArtifactError(name, f"has {found} bytes, the program says {fact.bytes}")
        if hashlib.sha256(content).hexdigest() != fact.sha256:
            raise ArtifactError(name, "was changed after it was written: its SHA-256 differs")
        graphs[name] = content
    used = {state.graph for state in program.states}
    used |= {state.step.rows.graph for state in program.states if state.step is not None}
    weights = Weights(folder / WEIGHTS, program.files[WEIGHTS], program.tensors)
    graphs = {name: content for name, content in graphs.items() if name in used}
    return Family(folder, program, Executor(program, graphs, weights, threads), weights)


def _read(folder: Path, name: str, most: int) -> bytes:
    try:
        with open(folder / name, "rb") as file:
            return file.read(most)
    except OSError as error:
        where = str(folder / name) if name == PROGRAM else name
        raise ArtifactError(where, f"cannot be read ({error.strerror or error})") from error


class Family:
    """The sub-networks of one artifact; made by `load`."""

    def __init__(self, path: Path, program: Program, executor: Executor, weights: Weights) -> None:
        self.path, self.program = path, program
        self._executor, self._weights = executor, weights

    @property
    def name(self) -> str:
        """What the network is called."""
        return self.program.name

    @property
    def digest(self) -> str:
        """SHA-256 of the whole artifact, as the compiler printed it."""
        return self.program.digest

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The sub-networks, each with its config and what was measured."""
        return self.program.entries

    @property
    def signature(self) -> Signature:
        """Inputs, outputs, preprocessing, class names and task."""
        return self.program.signature

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Family({self.name}: {len(self)} sub-networks)"

    def choose(self, *, budget_ms: float | None = None, config: Mapping[str, int | bool] | None = None) -> int:
        """The number of an entry.

        Args:
            budget_ms: milliseconds one row may take, compared with the measured `latency_ms` (of the machine in
                `program.conditions`; measure again where it runs elsewhere). The best entry that fits is taken: by
                the artifact's quality figure, or where none was measured by the latency itself, slower being larger.
            config: exactly this sub-network.

        Raises:
            ValueError: nothing fits the budget, no entry has this config, both are given, or nothing was measured.
        """
        if config is not None:
            if budget_ms is not None:
                raise ValueError("give budget_ms or config, not both")
            return self._with_config(config)
        if budget_ms is None and len(self) == 1:
            return 0
        numbers = list(range(len(self)))
        if budget_ms is not None:
            if any("latency_ms" not in entry.measured for entry in self.entries):
                raise ValueError("no latency was measured for this artifact: choose with config= or entry=")
            numbers = [n for n in numbers if self.entries[n].measured["latency_ms"] <= budget_ms]
            if not numbers:
                least = min(entry.measured["latency_ms"] for entry in self.entries)
                raise ValueError(f"no sub-network takes {budget_ms:g} ms or less; the fastest takes {least:.4g} ms")
        return max(numbers, key=self._goodness)

    def _with_config(self, config: Mapping[str, int | bool]) -> int:
        wanted = dict(config)
        for number, entry in enumerate(self.entries):
            if dict(entry.config) == wanted:
                return number
        raise ValueError(f"no sub-network has the config {wanted}; there are {len(self)}, see .entries")

    def _goodness(self, number: int) -> tuple[float, ...]:
        entry = self.entries[number]
        latency = entry.measured.get("latency_ms", 0.0)
        quality = self.program.quality
        if quality is None or any(quality.name not in each.measured for each in self.entries):
            return (latency or entry.measured.get("parameters", 0.0), -number)
        value = entry.measured[quality.name]
        return (value if quality.higher_is_better else -value, -latency, -number)

    def run(
        self,
        inputs: Any,
        *,
        budget_ms: float | None = None,
        config: Mapping[str, int | bool] | None = None,
        entry: int | None = None,
        preprocessed: bool = False,
    ) -> Any:
        """Outputs for a batch of samples.

        Args:
            inputs: raw samples, axis 0 the batch: an array, or a tuple or dict where the network takes several.
            budget_ms, config: which sub-network, see `choose`; by default the best.
            entry: its number instead.
            preprocessed: the samples are normalised already, as the network takes them.

        Returns:
            Arrays, in the tuples, lists and dicts the network returned.

        Raises:
            TypeError: inputs of another dtype or container.
            ValueError: inputs of another shape, or no entry that fits.
            ArtifactError: the graph cannot be loaded.
        """
        number = self._number(entry, budget_ms, config)
        arrays = arrays_of(inputs, self.signature, preprocessed=preprocessed)
        return self._executor.run(self.entries[number].start_state, arrays)

    def classify(
        self,
        inputs: Any,
        *,
        budget_ms: float | None = None,
        config: Mapping[str, int | bool] | None = None,
        entry: int | None = None,
        preprocessed: bool = False,
    ) -> list[str]:
        """The name of the likeliest class of every sample; arguments and errors as in `run`.

        Raises:
            ValueError: also for a network that does not classify, or whose classes have no names.
        """
        classes = self.signature.classes
        if self.signature.task not in (None, "classify") or not classes:
            raise ValueError(f"this network has the task {self.signature.task} and {len(classes)} class names")
        outputs = self.run(inputs, budget_ms=budget_ms, config=config, entry=entry, preprocessed=preprocessed)
        logits = main_array(outputs)
        if logits.ndim != 2 or logits.shape[1] != len(classes):
            raise ValueError(f"outputs of shape {list(logits.shape)} do not fit {len(classes)} class names")
        return [classes[index] for index in logits.argmax(axis=1)]

    def prepare(self, entry: int | None = None) -> None:
        """Load one sub-network, or all, so that the first `run` is as fast as the others."""
        for number in range(len(self)) if entry is None else [self._number(entry, None, None)]:
            self._executor.prepare(self.entries[number].start_state)

    def trace(
        self, inputs: Any, *, forced: Callable[[int, int], int] | None = None
    ) -> tuple[Any, list[tuple[int, int]]]:
        """One row through a program that decides, with the way it took.

        Args:
            inputs: as in `run`, one row.
            forced: from a state and the side it chose to the side to be taken instead; for checks of the wiring.

        Returns:
            What the network returns, and (state, side) of every decision; side 1 of an `if` is true.

        Raises:
            ValueError: a network that does not decide, or more than one row.
        """
        start = self.entries[0].start_state
        if self.program.states[start].step is None:
            raise ValueError("this network does not decide")
        arrays = arrays_of(inputs, self.signature, preprocessed=True)
        if self.signature.inputs[0].shape[0] == "N" and len(arrays[0]) != 1:
            raise ValueError(f"trace takes one row, got {len(arrays[0])}")
        return self._executor.trace(start, arrays, forced)

    def check(self, entry: int | None = None) -> dict[int, float]:
        """Try sub-networks on the rows stored with them, on this machine.

        Returns:
            For every entry that has rows: the largest difference to what the trained network answered, relative to
            its largest answer.

        Raises:
            ArtifactError: a difference above the tolerance stored with it.
        """
        found: dict[int, float] = {}
        for number in range(len(self)) if entry is None else [self._number(entry, None, None)]:
            check = self.entries[number].check
            if check is None:
                continue
            inputs = [self._weights.tensor(name) for name in check.inputs]
            state = self.program.states[self.entries[number].start_state]
            outputs = self._executor.answers(self.entries[number].start_state, inputs)
            gaps = [gap(self._weights.tensor(n), np.asarray(o))[1] for n, o in zip(check.outputs, outputs)]
            if len(outputs) != len(check.outputs):  # a row went another way
                gaps.append(float("inf"))
            found[number] = max(gaps, default=0.0)
            if not found[number] <= check.tolerance:
                allowed = f"allowed are {check.tolerance:g}"
                problem = f"entry {number} differs by {found[number]:.3g} from what was recorded ({allowed})"
                raise ArtifactError(state.graph, problem)
        return found

    def _number(self, entry: int | None, budget_ms: float | None, config: Mapping[str, int | bool] | None) -> int:
        if entry is None:
            return self.choose(budget_ms=budget_ms, config=config)
        if budget_ms is not None or config is not None:
            raise ValueError("give entry, budget_ms or config, only one of them")
        if not 0 <= entry < len(self):
            raise ValueError(f"entry must be from 0 to {len(self) - 1}, got {entry}")
        return entry


def main_array(outputs: Any) -> Array:
    """`logits` where a dict has them, else the first floating array.

    Raises:
        ValueError: there is none.
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), np.ndarray):
        logits: Array = outputs["logits"]
        return logits
    for array in _arrays(outputs):
        if array.dtype.kind == "f":
            return array
    raise ValueError("the network returned no floating array")


def _arrays(outputs: Any) -> list[Array]:
    if isinstance(outputs, np.ndarray):
        return [outputs]
    items = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    return [array for item in items for array in _arrays(item)] if isinstance(items, list | tuple) else []
