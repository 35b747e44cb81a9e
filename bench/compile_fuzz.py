"""compile-fuzz: 10,000 damaged artifacts of networks that decide and of a family in shells, loaded and run in children.

Half have a byte changed, cut or added somewhere and the hashes left alone; the other half have program.json or a graph
damaged and every hash made anew, as somebody would who knows how. A crash is a child that dies, a hang one that says
nothing for 30 seconds, wrong an answer other than the sound artifact's although hashes were left alone.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from select import select
from typing import Any

import numpy as np

from bench._common import Outcome, one_thread
from pliant.deploy import compile as compiled
from pliant.testing.zoo_dynamic_text import dynamic
from pliant_runtime import ArtifactError, load
from pliant_runtime.grammar import PROGRAM, digest_of

REQUIRED = ("artifacts", "crashes", "hangs", "wrong")
ARTIFACTS, PATIENCE = 10_000, 30.0
NETWORKS = ("fixed_point", "router", "tree", "act", "shells")
_ODD: tuple[Any, ...] = (-1, 0, 1, 7, 1 << 40, 1e30, "", "x", "../x", "/etc/passwd", None, True, [], {}, [[]],
                         "float64", {"in": 0}, {"out": 0}, {"in": 99}, "N", "L", {"L": [2, 1 << 40]})  # fmt: skip


def run(artifacts: int = ARTIFACTS) -> Outcome:
    """The row.

    Args:
        artifacts: how many; damages are the same in every run, so a case can be repeated by its number.
    """
    counts = {"refused": 0, "same": 0, "other": 0, "wrong": 0, "crashes": 0, "hangs": 0}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        case = 0
        while case < artifacts:
            case = _child(Path(folder), case, artifacts, counts)
    figures = {"artifacts": artifacts, "crashes": counts["crashes"], "hangs": counts["hangs"], "wrong": counts["wrong"],
               "refused_share": counts["refused"] / artifacts}  # fmt: skip
    return Outcome(figures, "artifacts of " + ", ".join(NETWORKS), [0], settings=counts)


def make(folder: Path) -> None:
    """The sound artifacts, with an input and the answer."""
    one_thread()
    import torch

    for name in NETWORKS:
        if name == "shells":
            row = _shells(folder / name)
        else:
            net, draw = dynamic(name)
            row = draw(torch.Generator().manual_seed(0))
            compiled(net, folder / name, example=row)
        np.save(folder / f"{name}.npy", row.numpy())


def _shells(folder: Path) -> Any:
    """A family of three sizes in one graph; returns its input."""
    import torch
    from torch import nn

    from pliant.elastic import elastic

    torch.manual_seed(0)
    row = torch.randn(2, 6)
    net = elastic(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)), row)
    configs = [net.space.uniform(share) for share in (1.0, 0.5, 0.25)]
    compiled(net, folder, configs=configs, layout="shells")
    return row


def _child(folder: Path, begin: int, end: int, counts: dict[str, int]) -> int:
    """Let a child work from a case on; returns the case after the last one it decided."""
    command = [sys.executable, "-m", "bench.compile_fuzz", str(folder), str(begin), str(min(end, begin + 1000))]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    assert child.stdout is not None  # it is a pipe; without a buffer, because select() does not see what lies in one
    case = begin
    while True:
        ready, _, _ = select([child.stdout], [], [], PATIENCE + (60 if case == begin else 0))
        line = child.stdout.readline().decode().strip() if ready else None
        if line is None or line == "":
            finished = line == "" and child.wait() == 0
            child.kill()
            child.wait()
            if finished:
                return case
            counts["hangs" if line is None else "crashes"] += 1
            print(f"case {case}: {'hang' if line is None else 'crash'}, exit {child.returncode}", file=sys.stderr)
            return case + 1
        if line in counts:
            counts[line] += 1
            case += 1


def work(folder: Path, begin: int, end: int) -> None:
    """What a child does: one line per case."""
    one_thread()
    truths = {name: _told(load(folder / name).run(np.load(folder / f"{name}.npy"))) for name in NETWORKS}
    for case in range(begin, end):
        source = random.Random(case)
        name = NETWORKS[case % len(NETWORKS)]
        signed = bool(case // len(NETWORKS) % 2)
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(folder / name, Path(place) / "a"))
            changed = forge(copy, source) if signed else damage(copy, source)
            print(_tried(copy, folder / f"{name}.npy", truths[name], signed or not changed), flush=True)


def _tried(copy: Path, inputs: Path, truth: str, signed: bool) -> str:
    try:
        found = _told(load(copy).run(np.load(inputs)))
    except ArtifactError:
        return "refused"
    except Exception:  # a forged network may fail in any way of its own, as a network may
        return "refused" if signed else "wrong"
    return "same" if found == truth else "other" if signed else "wrong"


def _told(output: Any) -> str:
    return repr([np.asarray(item).round(4).tolist() for item in (output if isinstance(output, tuple) else [output])])


def damage(folder: Path, source: random.Random) -> bool:
    """Change, cut or lengthen one file; whether it is another file now."""
    path = source.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    before = bytes(content)
    kind = source.randrange(4)
    if kind < 2 and content:
        for _ in range(source.randint(1, 4)):
            content[source.randrange(len(content))] = source.randrange(256)
    elif kind == 2:
        del content[source.randrange(len(content) + 1) :]
    else:
        content += bytes(source.randrange(256) for _ in range(source.randint(1, 9)))
    path.write_bytes(content)
    return bytes(content) != before


def forge(folder: Path, source: random.Random) -> bool:
    """Damage the program or a graph, and make every hash anew."""
    import hashlib

    program = json.loads((folder / PROGRAM).read_text())
    graphs = sorted(path for path in folder.iterdir() if path.suffix == ".onnx")
    if source.random() < 0.5:
        path = source.choice(graphs)
        content = bytearray(path.read_bytes())
        for _ in range(source.randint(1, 3)):
            content[source.randrange(len(content))] = source.randrange(256)
        path.write_bytes(content)
        program["files"][path.name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    else:
        for _ in range(source.randint(1, 3)):
            _mutate(program, source)
    program["sha256"] = digest_of(program)
    (folder / PROGRAM).write_text(json.dumps(program))
    return True


def _mutate(value: Any, source: random.Random) -> None:
    """Change one place of a JSON document."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = source.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and source.random() < 0.85:
            value = inner
            continue
        kind = source.randrange(4)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(inner, int) and not isinstance(inner, bool):
            value[key] = inner + source.choice((-1, 1, 1000))
        elif kind == 2 and isinstance(value, list):
            value.append(deepcopy(inner))
        else:
            value[key] = deepcopy(source.choice(_ODD))  # what is put in may be changed in its turn
        return


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
