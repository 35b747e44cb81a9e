"""Fold: repeated stretches of a circuit, so that a network of many equal blocks is drawn as one block and a number."""

from collections.abc import Iterator
from dataclasses import dataclass

from pliant.diagram.circuit import Circuit

LEAST = 3
"""A repeat is folded where it saves at least this many stations."""


@dataclass(frozen=True)
class Repeat:
    """Stations `start` to `start + length` stand for `count` stretches of that length, one after another."""

    start: int
    length: int
    count: int

    @property
    def body(self) -> range:
        """The stations that are drawn."""
        return range(self.start, self.start + self.length)

    @property
    def all(self) -> range:
        """The stations it stands for."""
        return range(self.start, self.start + self.length * self.count)


@dataclass(frozen=True)
class Folded:
    """A circuit with its repeats.

    Args:
        circuit: the whole one.
        repeats: outer ones before those inside them.
        kept: stations that are drawn, in program order.
        stand_in: station -> the drawn station that stands for it.
    """

    circuit: Circuit
    repeats: tuple[Repeat, ...]
    kept: tuple[int, ...]
    stand_in: tuple[int, ...]

    def sources(self, index: int) -> list[int]:
        """What a drawn station reads, as drawn stations; in the order of its operands."""
        return [self.stand_in[i] for i in self.circuit.stations[index].sources]

    def alike(self, index: int) -> list[int]:
        """Every station that a drawn one stands for, itself first."""
        return [i for i, drawn in enumerate(self.stand_in) if drawn == index]


def fold(circuit: Circuit) -> Folded:
    """Find the repeats of a circuit: equal stations in equal order, each stretch reading what the one before gave."""
    repeats = tuple(_Search(circuit).within(0, len(circuit.stations)))
    stand_in = list(range(len(circuit.stations)))
    for repeat in repeats:
        for i in repeat.all:
            stand_in[i] = repeat.start + (i - repeat.start) % repeat.length
    for i, drawn in enumerate(stand_in):  # a stretch inside a stretch
        while stand_in[drawn] != drawn:
            drawn = stand_in[drawn]
        stand_in[i] = drawn
    kept = tuple(i for i, drawn in enumerate(stand_in) if i == drawn)
    return Folded(circuit, repeats, kept, tuple(stand_in))


class _Search:
    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        codes: dict[str, int] = {}
        self.codes = [codes.setdefault(circuit.text(i), len(codes)) for i in range(len(circuit.stations))]
        self.sources = [station.sources for station in circuit.stations]
        self.readers: list[list[int]] = [[] for _ in circuit.stations]
        for i, sources in enumerate(self.sources):
            for source in sources:
                self.readers[source].append(i)

    def within(self, low: int, high: int) -> Iterator[Repeat]:
        """The repeats between two stations: the one that saves most first, then those beside and inside it."""
        best: Repeat | None = None
        for length in range(1, (high - low) // 2 + 1):
            for start, stop in self._runs(low, high, length):
                count = (stop - start) // length
                saved = (count - 1) * length
                if saved >= LEAST and (best is None or saved > (best.count - 1) * best.length):
                    best = self._placed(start, stop, length) or best
        if best is not None:
            yield best
            yield from self.within(low, best.start)
            yield from self.within(best.body.start, best.body.stop)
            yield from self.within(best.all.stop, high)

    def _runs(self, low: int, high: int, length: int) -> Iterator[tuple[int, int]]:
        """Longest stretches [start, stop) in which every station equals the one `length` further on."""
        start = low
        for i in range(low, high - length + 1):
            if i == high - length or not self._same(i, i + length, start):
                if i - start >= length:
                    yield start, i + length
                start = i + 1

    def _same(self, i: int, j: int, start: int) -> bool:
        """Equal stations that read what lies equally far back, or the same value from before the stretch."""
        if self.codes[i] != self.codes[j]:
            return False
        pairs = zip(self.sources[i], self.sources[j], strict=True)
        return all(b - a == j - i or (a == b and a < start) for a, b in pairs)

    def _placed(self, start: int, stop: int, length: int) -> Repeat | None:
        """The best place to cut a run into stretches: few values cross the cut, and a stretch is one module."""
        count = (stop - start) // length
        options = [Repeat(s, length, count) for s in range(start, stop - count * length + 1)]
        chained = [repeat for repeat in options if self._chained(repeat)]
        return min(chained, key=lambda r: (self._crossing(r), -self._depth(r), r.start)) if chained else None

    def _chained(self, repeat: Repeat) -> bool:
        """Whether each stretch reads the one before it, and nothing further on reads any but the last."""
        second = range(repeat.start + repeat.length, repeat.start + 2 * repeat.length)
        linked = any(source in repeat.body for i in second for source in self.sources[i])
        before_last = range(repeat.start, repeat.all.stop - repeat.length)
        return linked and all(reader in repeat.all for i in before_last for reader in self.readers[i])

    def _crossing(self, repeat: Repeat) -> int:
        """How many values come into a stretch from outside."""
        return len({source for i in repeat.body for source in self.sources[i] if source < repeat.start})

    def _depth(self, repeat: Repeat) -> int:
        """How long the path is that the modules of a stretch share."""
        paths = [self.circuit.stations[i].module.split(".") for i in repeat.body]
        depth = 0
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            depth += 1
        return depth
