"""Strings to objects, with errors that list the choices."""

from types import ModuleType
from typing import Any


def resolve(room: ModuleType, name: str, *, what: str) -> Any:
    """The public object of `room` called `name`; case, dashes and underscores do not matter.

    Args:
        room: a module with `__all__`.
        name: what the user wrote.
        what: what it is, for the message ("recipe", "network").

    Raises:
        ValueError: no such name; the message lists the choices.
    """
    names: list[str] = list(room.__all__)
    wanted = name.lower().replace("-", "").replace("_", "")
    for candidate in names:
        if candidate.lower().replace("_", "") == wanted:
            return getattr(room, candidate)
    raise ValueError(f"no {what} called {name!r}; choose one of {', '.join(names)}")
