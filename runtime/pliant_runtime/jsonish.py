"""Reading values out of untrusted JSON: every access states what it expects, every failure says where."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from pliant_runtime.errors import ArtifactError

T = TypeVar("T")

MAX_BYTES = 16 << 20
MAX_DEPTH = 40
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Node:
    """One value of a JSON document together with its place.

    Args:
        value: the value.
        place: where it is, such as `states[0].graph`.
        file: the file it was read from.
    """

    def __init__(self, value: Any, place: str, file: str) -> None:
        self.value, self.place, self.file = value, place, file

    def fail(self, problem: str) -> NoReturn:
        """Raise `ArtifactError` with this value's place."""
        raise ArtifactError(self.file, f"{self.place or 'document'} {problem}")

    def _expect(self, what: str, right: bool) -> None:
        if not right:
            self.fail(f"must be {what}, got {_short(self.value)}")

    def object(self, *, need: tuple[str, ...], may: tuple[str, ...] = ()) -> dict[str, "Node"]:
        """The members of an object that has all of `need` and nothing beyond `need` and `may`."""
        self._expect("an object", isinstance(self.value, dict))
        missing = [name for name in need if name not in self.value]
        if missing:
            self.fail(f"lacks {', '.join(missing)}")
        strange = [name for name in self.value if name not in need + may]
        if strange:
            self.fail(f"has the unknown member {_short(strange[0])}")
        return {name: self._child(item, f".{name}") for name, item in self.value.items()}

    def mapping(self, most: int = 1_000_000) -> dict[str, "Node"]:
        """The members of an object with free names."""
        self._expect("an object", isinstance(self.value, dict))
        self._expect(f"an object of at most {most} members", len(self.value) <= most)
        return {name: self._child(item, f"[{_short(name)}]") for name, item in self.value.items()}

    def list(self, read: Callable[["Node"], T], *, least: int = 0, most: int = 1_000_000) -> list[T]:
        """The items of a list, each read by `read`."""
        self._expect("a list", isinstance(self.value, list))
        self._expect(f"a list of {least} to {most} items", least <= len(self.value) <= most)
        return [read(self._child(item, f"[{number}]")) for number, item in enumerate(self.value)]

    def text(self, most: int = 10_000) -> str:
        """A string."""
        self._expect("a string", isinstance(self.value, str))
        self._expect(f"a string of at most {most} characters", len(self.value) <= most)
        return str(self.value)

    def choice(self, choices: tuple[str, ...] | Mapping[str, Any]) -> str:
        """One of some strings."""
        self._expect(f"one of {', '.join(choices)}", isinstance(self.value, str) and self.value in choices)
        return str(self.value)

    def integer(self, least: int = 0, most: int = 1 << 62) -> int:
        """An integer in a range (never a bool)."""
        right = isinstance(self.value, int) and not isinstance(self.value, bool) and least <= self.value <= most
        self._expect(f"an integer from {least} to {most}", right)
        return int(self.value)

    def number(self) -> float:
        """A finite number."""
        right = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        self._expect("a finite number", right and abs(self.value) < float("inf"))
        return float(self.value)

    def hash(self) -> str:
        """A SHA-256 in lower-case hex."""
        right = isinstance(self.value, str) and len(self.value) == 64 and set(self.value) <= set("0123456789abcdef")
        self._expect("a SHA-256 in hex", right)
        return str(self.value)

    def file_name(self) -> str:
        """A plain file name: no folder, no drive, nothing hidden."""
        text = self.text(255)
        plain = text.isascii() and text.isprintable() and not text.startswith(".") and not set(text) & set('/\\:*?"<>|')
        self._expect("a plain file name", bool(text) and plain)
        return text

    def _child(self, value: Any, step: str) -> "Node":
        return Node(value, f"{self.place}{step}".removeprefix("."), self.file)


def parse(content: bytes, file: str) -> Node:
    """A JSON document, with limits on size and depth, without NaN, infinities and repeated names.

    Raises:
        ArtifactError: any of these.
    """
    if len(content) > MAX_BYTES:
        raise ArtifactError(file, f"is larger than {MAX_BYTES} bytes")
    _limit_depth(content, file)
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(file, f"is no valid JSON ({error})") from error
    return Node(value, "", file)


def _limit_depth(content: bytes, file: str) -> None:
    depth = 0
    for match in _TOKENS.finditer(content):
        token = match.group()
        depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
        if depth > MAX_DEPTH:
            raise ArtifactError(file, f"is nested deeper than {MAX_DEPTH} levels")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
