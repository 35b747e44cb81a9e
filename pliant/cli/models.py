"""MODEL on the command line: a name in `pliant.nets`, `file.py:factory` or `package.module:factory`."""

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pliant.core import PliantError, resolve

Factory = Callable[..., nn.Module]


def parse_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as keyword arguments; a value is JSON where it reads as JSON, else text.

    Raises:
        ValueError: no `=`, a key that is no Python name, or a key given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--arg takes key=value, got {pair!r}")
        if key in found:
            raise ValueError(f"--arg {key} was given twice")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def offers(module: ModuleType) -> list[str]:
    """Names in a module that may be meant: its own public functions, network classes and networks."""
    names = []
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        network = isinstance(value, nn.Module) or (inspect.isclass(value) and issubclass(value, nn.Module) and own)
        if not name.startswith("_") and (network or (inspect.isfunction(value) and own)):
            names.append(name)
    return sorted(names)


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Errors of user code as one sentence with the user's own line."""
    try:
        yield
    except PliantError:
        raise
    except Exception as error:
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}"
        else:
            frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
            place = f"{own[-1].filename}:{own[-1].lineno}"
        raise PliantError(f"{what} raised {type(error).__name__}: {error}", where=place) from error


def load_file(path: Path) -> ModuleType:
    """A Python file as a module, its folder on the path while it is loaded.

    Raises:
        PliantError: no such file, or its code raises.
    """
    if not path.is_file():
        raise PliantError("no such file", where=str(path), fix=f"give a path from {Path.cwd()} or an absolute one")
    path = path.resolve()
    name = f"_pliant_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PliantError("not a Python file", where=str(path), fix="give file.py:factory")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look modules up by name
    sys.path.insert(0, str(path.parent))
    try:
        with _user_code(f"loading {path.name}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())  # as `python -m` does; a console script has its own folder there instead
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise PliantError(
            f"cannot import {name!r} ({error})", fix="check the spelling, or start in the folder that holds it"
        ) from error
    finally:
        sys.path.remove(os.getcwd())


def find_factory(model: str) -> tuple[Factory, bool]:
    """The factory that MODEL names, and whether it is one of pliant's own.

    Raises:
        ValueError: an unknown name; the message lists the choices.
        PliantError: a file or module that cannot be loaded, or has no such factory.
    """
    place, colon, name = model.rpartition(":")
    if not colon:
        if model.endswith(".py"):
            raise ValueError(
                f"MODEL needs a factory: {model}:NAME, where NAME is one of {_listed(load_file(Path(model)))}"
            )
        import pliant.nets as nets

        return resolve(nets, model, what="network (or file.py:factory, package.module:factory)"), True
    module = load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        return (lambda: found), False
    if not callable(found):
        missing = "is no factory" if hasattr(module, name) else "does not exist"
        raise PliantError(f"{name!r} {missing}", where=place, fix=f"choose one of {_listed(module)}")
    return found, False


def _listed(module: ModuleType) -> str:
    return ", ".join(offers(module)) or "(none: the file defines no public function and no nn.Module)"


def accepted(factory: Factory) -> set[str]:
    """Names of a factory's keyword arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in inspect.signature(factory).parameters.items() if parameter.kind in kinds}


def build(model: str, args: dict[str, Any], *, given: dict[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """The network that MODEL names, its random weights drawn under `seed`.

    Args:
        model: MODEL as the user wrote it.
        args: keyword arguments for the factory; they win over `given`.
        given: what the data say (input shape, number of classes); only for pliant's own networks, as far as they ask.
        seed: of the initial weights; the global generator is left as it was.

    Raises:
        ValueError: an argument that the factory does not take.
        PliantError: the factory raises, or returns no `nn.Module`.
    """
    factory, own = find_factory(model)
    names = accepted(factory)
    keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    unknown = [] if keywords else sorted(set(args) - names)
    if unknown:
        raise ValueError(f"{model} takes no argument {unknown[0]!r}; it takes {', '.join(sorted(names)) or 'none'}")
    told = {key: value for key, value in (given or {}).items() if own and key in names}
    with torch.random.fork_rng(devices=[]), _user_code(f"{model.rpartition(':')[2]}({', '.join(args)})"):
        torch.manual_seed(seed)
        net = factory(**{**told, **args})
    if not isinstance(net, nn.Module):
        raise PliantError(
            f"{model} returned {type(net).__name__}, not an nn.Module", fix="name a function that returns one"
        )
    return net
