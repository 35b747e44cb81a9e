"""Sub-spaces in their place in a larger one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pliant.core.config import Config, Value
from pliant.core.knob import Knob

if TYPE_CHECKING:
    from pliant.core.space import Space

KINDS = ("nested", "optional", "repeated", "either")


@dataclass(frozen=True)
class Part:
    """One or several sub-spaces and the knob, if any, that says which of them are there.

    Made by `nested`, `optional`, `repeated` and `either`.

    Args:
        kind: one of these.
        name: of that knob, and before the knobs of the sub-spaces.
        spaces: what is chosen from (`either`) or the only one.
        labels: of the spaces (`either`).
        least: copies at least (`repeated`).
        most: copies at most (`repeated`).
        tied: whether all copies make the same choices (`repeated`).

    Raises:
        ValueError: an unknown kind.
    """

    kind: str
    name: str
    spaces: "tuple[Space, ...]"
    labels: tuple[str, ...] = ()
    least: int = 1
    most: int = 1
    tied: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a sub-space is one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def _own(self) -> Knob | None:
        if self.kind == "optional":
            return Knob(self.name, (False, True))
        if self.kind == "either":
            return Knob(self.name, self.labels)
        if self.kind == "repeated" and self.least < self.most:
            return Knob(self.name, tuple(range(self.least, self.most + 1)))
        return None

    def _placed(self) -> "Iterator[tuple[Space, str, Mapping[str, Sequence[Value]]]]":
        """Each sub-space whose knobs are written out, what their names begin with and when they are there."""
        if self.kind == "optional":
            yield self.spaces[0], f"{self.name}.", {self.name: (True,)}
        elif self.kind == "either":
            for label, space in zip(self.labels, self.spaces, strict=True):
                yield space, f"{self.name}.{label}.", {self.name: (label,)}
        elif self.kind == "nested":
            yield self.spaces[0], f"{self.name}.", {}
        else:
            for copy in range(1 if self.tied else self.most):
                always = copy < self.least
                when = {} if always else {self.name: tuple(range(max(copy + 1, self.least), self.most + 1))}
                yield self.spaces[0], f"{self.name}." if self.tied else f"{self.name}.{copy}.", when

    def knobs(self) -> list[Knob]:
        """All knobs, the own one first."""
        own = self._own
        found = [] if own is None else [own]
        for space, prefix, when in self._placed():
            found += [knob.below(prefix, when) for knob in space.knobs]
        return found

    def values(self, config: Config, prefix: str) -> Any:
        """What the sub-spaces give for a valid config of the whole, in which names begin with `prefix`."""
        at = prefix + self.name
        if self.kind == "nested":
            return self.spaces[0].built(config, f"{at}.")
        if self.kind == "repeated":
            times = config.get(at, self.most if self.least == self.most else 0)
            return [self.spaces[0].built(config, f"{at}." if self.tied else f"{at}.{i}.") for i in range(times)]
        if self.kind == "optional":
            return self.spaces[0].built(config, f"{at}.") if config.get(at) else None
        if at not in config:
            return None
        label = config[at]
        found = self.spaces[self.labels.index(label)].built(config, f"{at}.{label}.")
        # without a builder nothing in the values would say which sub-space they are of
        return found if self.spaces[self.labels.index(label)].builder else {"choice": label, **found}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse."""
        return {
            "part": self.kind,
            "name": self.name,
            "spaces": [space.to_dict() for space in self.spaces],
            "labels": list(self.labels),
            "copies": [self.least, self.most],
            "tied": self.tied,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], space_of: "Callable[[Any], Space]") -> "Part":
        """The inverse of `to_dict`; `space_of` makes a sub-space of its data."""
        spaces = tuple(space_of(space) for space in data["spaces"])
        least, most = data["copies"]
        labels = tuple(str(label) for label in data["labels"])
        return cls(str(data["part"]), str(data["name"]), spaces, labels, int(least), int(most), bool(data["tied"]))
