"""`pliant-runtime ARTIFACT`: look into an artifact, check it, or run it on an .npy file.

`pliant-runtime measure PROBES --out FILE` describes this machine instead (an artifact in a folder called `measure` is
`./measure`); `serve`, `simulate` and `load` serve an artifact, tell what load it holds here, and load a server.
`python -m pliant_runtime` is the same.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pliant_runtime.errors import ArtifactError
from pliant_runtime.family import Family, load, main_array
from pliant_runtime.measure import main as measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 1 a damaged artifact or wrong input, 2 wrong usage)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["measure"]:
        return measure(arguments[1:])
    if arguments[:1] in (["serve"], ["simulate"], ["load"]):
        from pliant_runtime.serving.command import main as serving  # only those who serve need what it imports

        return serving(arguments)
    parser = argparse.ArgumentParser(prog="pliant-runtime", description=__doc__)
    parser.add_argument("artifact", type=Path, help="folder of the artifact")
    parser.add_argument("input", type=Path, nargs="?", help=".npy file with a batch of raw samples")
    parser.add_argument("--info", action="store_true", help="show inputs, outputs and sub-networks")
    parser.add_argument("--check", action="store_true", help="try every sub-network on the rows stored with it")
    parser.add_argument("--budget-ms", type=float, help="milliseconds one row may take")
    parser.add_argument("--entry", type=int, help="number of the sub-network")
    parser.add_argument("--preprocessed", action="store_true", help="the samples are normalised already")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the main output to this .npy file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(arguments)
    try:
        family = load(options.artifact, threads=options.threads)
        if options.input is not None:
            result = _run(family, options)
        elif options.check:
            result = {"checked": {str(number): gap for number, gap in family.check().items()}}
        else:
            result = info(family)
    except (ArtifactError, OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if options.json else _text(result))
    return 0


def info(family: Family) -> dict[str, Any]:
    """What an artifact holds, as plain JSON data."""
    signature = family.signature
    return {
        "name": family.name,
        "sha256": family.digest,
        "task": signature.task,
        "classes": len(signature.classes),
        "inputs": [f"{value.name}: {value.dtype}{_shape(value.shape)}" for value in signature.inputs],
        "outputs": [f"{value.name}: {value.dtype}{_shape(value.shape)}" for value in signature.outputs],
        "raw": _raw(family),
        "conditions": dict(family.program.conditions),
        "entries": [{"measured": dict(entry.measured), "config": dict(entry.config)} for entry in family.entries],
    }


def _raw(family: Family) -> str | None:
    raw = family.signature.preprocessing
    return None if raw is None else f"{raw.dtype}{_shape(('N', *raw.shape))} (layout {raw.layout})"


def _shape(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _run(family: Family, options: argparse.Namespace) -> dict[str, Any]:
    inputs = np.load(options.input, allow_pickle=False)
    number = options.entry if options.entry is not None else family.choose(budget_ms=options.budget_ms)
    output = main_array(family.run(inputs, entry=number, preprocessed=options.preprocessed))
    result: dict[str, Any] = {"entry": number, "shape": list(output.shape)}
    if family.signature.task == "classify" and output.ndim == 2:
        indices = output.argmax(axis=1)
        names = family.signature.classes
        result["classes"] = [names[index] if index < len(names) else int(index) for index in indices]
    if options.out is not None:
        np.save(options.out, output, allow_pickle=False)
        result["written"] = str(options.out)
    elif "classes" not in result:
        result["output"] = output.tolist()
    return result


def _text(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result.items():
        if name == "entries":
            lines.append("sub-networks:")
            lines += [f"  {n}: {_figures(e['measured'])}  {json.dumps(e['config'])}" for n, e in enumerate(value)]
        elif isinstance(value, dict):
            lines.append(f"{name}: {_figures(value)}")
        elif isinstance(value, list):
            lines.append(f"{name}: {', '.join(map(str, value))}")
        elif value is not None:
            lines.append(f"{name}: {value}")
    return "\n".join(lines)


def _figures(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


if __name__ == "__main__":
    sys.exit(main())
