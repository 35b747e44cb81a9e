"""pliant: networks that contain many networks. This file is the map: every public name and where it lives.

Names are imported when they are first used, so `import pliant` costs nothing and does not load torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pliant import data as data
    from pliant import nets as nets
    from pliant import runtime as runtime
    from pliant import surgery as surgery
    from pliant.compress import prune as prune
    from pliant.core import Config as Config
    from pliant.core import PliantError as PliantError
    from pliant.core import Selection as Selection
    from pliant.core import Space as Space
    from pliant.deploy import compile as compile
    from pliant.elastic import Elastic as Elastic
    from pliant.elastic import OnePass as OnePass
    from pliant.elastic import elastic as elastic
    from pliant.elastic import generate as generate
    from pliant.elastic import one_pass as one_pass
    from pliant.elastic import recipes as recipes
    from pliant.elastic import separate as separate
    from pliant.elastic import to_module as to_module
    from pliant.export import hardware as hardware
    from pliant.graph import trace as trace
    from pliant.learn import Settings as Settings
    from pliant.learn import evaluate as evaluate
    from pliant.learn import train as train
    from pliant.search import Front as Front
    from pliant.search import search as search

__version__ = "0.1.0"

_WHERE = {
    "Config": "pliant.core:Config", "Elastic": "pliant.elastic:Elastic", "Front": "pliant.search:Front",
    "OnePass": "pliant.elastic:OnePass", "PliantError": "pliant.core:PliantError", "Selection": "pliant.core:Selection",
    "Settings": "pliant.learn:Settings", "Space": "pliant.core:Space", "compile": "pliant.deploy:compile",
    "data": "pliant.data", "elastic": "pliant.elastic:elastic", "evaluate": "pliant.learn:evaluate",
    "generate": "pliant.elastic:generate",
    "hardware": "pliant.export:hardware", "nets": "pliant.nets", "one_pass": "pliant.elastic:one_pass",
    "prune": "pliant.compress:prune",
    "recipes": "pliant.elastic.recipes", "runtime": "pliant.runtime", "search": "pliant.search:search",
    "separate": "pliant.elastic:separate",
    "surgery": "pliant.surgery", "to_module": "pliant.elastic:to_module", "trace": "pliant.graph:trace",
    "train": "pliant.learn:train",
}  # fmt: skip
__all__ = [*_WHERE, "__version__"]


class _Map(ModuleType):
    """A module whose public names stay what `_WHERE` says.

    `pliant.elastic` and `pliant.search` are functions, but also packages: importing `pliant.elastic.recipes` makes the
    import system bind the package here, over the function. Binding a module to a name that is none is ignored.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and ":" in _WHERE.get(name, "")):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'pliant' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
        module, _, attribute = _WHERE[name].partition(":")
        return getattr(import_module(module), attribute) if attribute else import_module(module)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_WHERE})


sys.modules[__name__].__class__ = _Map
