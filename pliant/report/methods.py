"""The catalogue: every `Facts` value declared in the package."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import pliant
from pliant.core import Facts


@dataclass(frozen=True)
class Method:
    """One line of the catalogue.

    Args:
        name: of the object that carries the facts, of the constant, or of the module for a constant `FACTS`.
        module: where it is declared, such as `pliant.learn.nested`.
        facts: what it declares about itself.
    """

    name: str
    module: str
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"name": self.name, "module": self.module, **asdict(self.facts)}


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if info.name.rpartition(".")[2] != "__main__":
            yield importlib.import_module(info.name)


def _declared(module: ModuleType) -> Iterator[tuple[str, Facts]]:
    """Facts in a module: constants, tuples of them, and `facts` of classes and functions defined there."""
    for name, value in vars(module).items():
        if isinstance(value, Facts):
            yield (module.__name__.rpartition(".")[2] if name == "FACTS" else name), value
        elif isinstance(value, tuple | list):
            yield from ((fact.title, fact) for fact in value if isinstance(fact, Facts))
        elif isinstance(value, dict):
            yield from ((str(key), fact) for key, fact in value.items() if isinstance(fact, Facts))
        elif getattr(value, "__module__", None) == module.__name__:
            facts = getattr(value, "facts", None) if not name.startswith("_") else None
            if isinstance(facts, Facts):
                yield name, facts


def catalogue(package: ModuleType = pliant) -> list[Method]:
    """Every method in the package and its rooms, each once, by room and name.

    Imports all modules of the package; an object's own name is preferred over that of a constant.
    """
    found: dict[tuple[str, str], Method] = {}
    for module in _modules(package):
        for name, facts in _declared(module):
            key = (facts.room, facts.title)
            known = found.get(key)
            if known is None or (known.module == module.__name__ and known.name == module.__name__.rpartition(".")[2]):
                found[key] = Method(name, module.__name__, facts)
    return sorted(found.values(), key=lambda method: (method.facts.room, method.name.lower()))
