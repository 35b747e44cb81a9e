"""Imports run downwards, private torch names live in one file, and nothing tracked knows the machine it came from."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"core"},
    {"graph", "data", "nets", "runtime"},
    {"learn", "export", "diagram", "flow"},
    {"elastic", "surgery"},
    {"search"},
    {"compress", "dynamic", "compose"},
    {"trust", "probe", "retrieve"},
    {"deploy", "serve", "store"},
    {"report", "testing"},
    {"cli"},  # above its neighbours: its commands show what the report draws and run what testing ships
    {"__main__"},  # `python -m pliant`
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = ("report", "testing", "cli", "__main__")
"""Rooms that stand where a user stands: they may use the map."""
STRANGERS = {"nets": {"nets"}, "runtime": {"runtime"}, "serve": {"serve", "runtime"}}
"""Rooms that may import even less than their floor allows, and what that is."""
MAP = "(the map)"

Found = tuple[int, str]


def imports(tree: ast.Module) -> Iterator[Found]:
    """Line and absolute dotted name of everything a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{a.name}") for a in node.names)


def room_of(name: str) -> str | None:
    """The room a dotted name lies in; None for things outside the project, the map for names of `pliant` itself."""
    first, _, rest = name.partition(".")
    if first == "pliant_runtime":
        return "runtime"
    if first != "pliant":
        return None
    room = rest.partition(".")[0]
    return room if room in FLOOR else MAP


def bad_imports(room: str, tree: ast.Module) -> Iterator[Found]:
    """Imports that do not run downwards from `room`."""
    for line, name in imports(tree):
        target = room_of(name)
        if name.startswith("."):
            yield line, f"relative import {name}"
        elif target is None or target == room:
            if room == "runtime" and name.partition(".")[0] == "torch":
                yield line, "the runtime must not import torch"
        elif target == MAP:
            if room not in OUTSIDE:
                yield line, f"{room} imports the map ({name}); name the room"
        elif target not in STRANGERS.get(room, FLOOR) or FLOOR[target] >= FLOOR[room]:
            yield line, f"{room} must not import {target} ({name})"


def _dotted(node: ast.expr) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)) is not None:
        return [*head, node.attr]
    return None


def _private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "torch" and any(part.startswith("_") and not part.endswith("__") for part in parts[1:])


def private_torch(tree: ast.Module) -> Iterator[Found]:
    """Private torch names: imported, or reached as an attribute of anything imported from torch."""
    yield from ((line, name) for line, name in imports(tree) if _private(name))
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {alias.asname: alias.name for alias in node.names if alias.asname}
            bound |= {first: first for first in (alias.name.partition(".")[0] for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (parts := _dotted(node)) is not None:
            name = ".".join([bound.get(parts[0], ""), *parts[1:]])
            if _private(name) and not _private(name.rpartition(".")[0]):
                yield node.lineno, name


def package_files() -> list[Path]:
    return sorted([*(ROOT / "pliant").rglob("*.py"), *(ROOT / "runtime/pliant_runtime").rglob("*.py")])


def room_of_file(path: Path) -> str | None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "runtime" if parts[0] == "runtime" else parts[1] if parts[1] != "__init__" else None


def _tell(found: dict[Path, list[Found]]) -> str:
    return "\n".join(f"{path.relative_to(ROOT)}:{line}: {what}" for path, rows in found.items() for line, what in rows)


def test_every_room_is_on_the_plan() -> None:
    rooms = {room_of_file(path) for path in package_files()} - {None}
    assert rooms <= FLOOR.keys(), f"rooms without a floor: {sorted(map(str, rooms - FLOOR.keys()))}"


def test_imports_run_downwards() -> None:
    found = {}
    for path in package_files():
        if (room := room_of_file(path)) is not None:
            found[path] = list(bad_imports(room, ast.parse(path.read_text())))
    assert not any(found.values()), _tell(found)


def test_private_torch_names_live_in_one_file() -> None:
    files = [*package_files(), *(p for room in ("bench", "tools", "examples") for p in (ROOT / room).rglob("*.py"))]
    found = {p: list(private_torch(ast.parse(p.read_text()))) for p in files if p.name != "_torch_private.py"}
    assert not any(found.values()), _tell(found)


@pytest.mark.parametrize(
    ("room", "line", "said"),
    [
        ("graph", "from pliant.core import Config", None),
        ("graph", "from pliant.graph.fields import Field", None),
        ("graph", "from pliant.data import load", "graph must not import data (pliant.data.load)"),
        ("graph", "import pliant.learn.loop", "graph must not import learn (pliant.learn.loop)"),
        ("graph", "from pliant import data", "graph must not import data (pliant.data)"),
        ("graph", "from pliant import PliantError", "graph imports the map (pliant.PliantError); name the room"),
        ("graph", "import pliant", "graph imports the map (pliant); name the room"),
        ("graph", "from . import fields", "relative import ..fields"),
        ("graph", "def f():\n    from pliant.learn import train", "graph must not import learn (pliant.learn.train)"),
        ("learn", "from pliant_runtime import load", None),
        ("learn", "from pliant.export import hardware", "learn must not import export (pliant.export.hardware)"),
        ("nets", "from pliant.core import resolve", "nets must not import core (pliant.core.resolve)"),
        ("runtime", "from torch import nn", "the runtime must not import torch"),
        ("runtime", "from pliant.core import Config", "runtime must not import core (pliant.core.Config)"),
        ("serve", "from pliant.elastic import Elastic", "serve must not import elastic (pliant.elastic.Elastic)"),
        ("cli", "import pliant", None),
        ("report", "from pliant.testing import zoo", "report must not import testing (pliant.testing.zoo)"),
    ],
)
def test_the_import_check_itself(room: str, line: str, said: str | None) -> None:
    assert [text for _, text in bad_imports(room, ast.parse(line))] == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch._C", "torch._C"),
        ("from torch._dynamo import reset", "torch._dynamo.reset"),
        ("from torch.fx import _pytree", "torch.fx._pytree"),
        ("import torch\nx = torch._C._jit_pass(1)", "torch._C"),
        ("import torch.nn.functional as F\nF._verify(1)", "torch.nn.functional._verify"),
        ("from torch import fx\nfx.node._side_effectful", "torch.fx.node._side_effectful"),
        ("import torch\ntorch.__version__\ntorch.ops.aten.add_", None),
        ("import numpy\nnumpy._core\nself._C", None),
    ],
)
def test_the_private_name_check_itself(text: str, name: str | None) -> None:
    assert [found for _, found in private_torch(ast.parse(text))] == ([] if name is None else [name])


def _tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so what is tracked is not known")
    return [name for name in listed.stdout.split("\0") if name]


def test_nothing_tracked_knows_its_machine() -> None:
    # Spelt apart, so that this file does not find itself.
    marks = ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "opt/", ".." + "/shared", "pythonhosted" + ".org"]
    marks += ["pypi" + ".org", "download" + ".pytorch.org"]
    found = []
    for name in _tracked():
        path = ROOT / name
        if not path.is_file() or path.is_symlink() or b"\0" in (content := path.read_bytes())[:4096]:
            continue
        allowed = {".." + "/shared"} if name == ".ci/run" else set()
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            found += [f"{name}:{number}: {mark}" for mark in marks if mark in line and mark not in allowed]
    assert not found, "\n".join(found)
