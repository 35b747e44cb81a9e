"""Compile for networks that decide: taken apart, written, loaded, proven, and only then handed over."""

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pliant.core import Config, PliantError, atomic_folder, seeded, write_atomic, write_json
from pliant.deploy.card import markdown
from pliant.deploy.decide import Deciding, cpu, deciding, deciding_free, refuse_fixed_zero, write
from pliant.deploy.lengths import sequences
from pliant.deploy.program import sizes_of, write_program
from pliant.deploy.prove import Proof, prove, to_check
from pliant.deploy.verify import arrays
from pliant.elastic.branching import Branching
from pliant.export import Hardware
from pliant.export.structure import InputForm
from pliant.export.to_onnx import evaluated
from pliant.flow import decides
from pliant_runtime import Family, __version__, load

_TRIED = 3
"""Rows among which those to be stored are looked for."""
_ROWS = 24
"""Random rows of the proof, besides those of the example."""
_EACH = 5
"""Random rows at every other length."""


def decides_on(net: nn.Module, example: Any) -> bool:
    """Whether a network's way may depend on its inputs: whether it asks a tensor for its value on one row."""
    form = InputForm(cpu(example))
    with evaluated(net) as local:
        return decides(local, form.rows(1))


def only(net: Branching, points: Sequence[tuple[Config, Any]]) -> nn.Module:
    """The sub-network of the one point that is asked for.

    Raises:
        PliantError: there are several.
    """
    if len(points) != 1:
        problem = f"{len(points)} sub-networks of a network that decides in one artifact"
        raise PliantError(f"{problem}; it holds one sub-network", fix="compile each of them by itself")
    return net.extract(points[0][0])


def compile_deciding(
    net: nn.Module, out: Path, *, example: Any, machine: Hardware, replace: bool = False, seed: int = 0
) -> Path:
    """Make an artifact of many states from a network whose way depends on the data.

    Its forward is read as a program for one row; many rows are independent runs of it. The lengths of its sequences are
    left free where its code allows that. See `pliant.compile`.

    Raises:
        PliantError: the forward cannot become a program (with file, line and way out), a block cannot be exported, or
            the program answers otherwise than the network.
    """
    inputs = cpu(example)
    refuse_fixed_zero(InputForm(inputs))
    fixed = None
    if sequences(InputForm(inputs))[1]:
        try:
            made = deciding_free(net, inputs, seed=seed)
            return _written(made, net, out, machine=machine, replace=replace, seed=seed)
        except Exception as error:  # torch raises anything where a size cannot be a symbol; the reason is told
            fixed = error
    made = deciding(net, inputs, seed=seed)
    return _written(made, net, out, machine=machine, replace=replace, seed=seed, fixed=fixed)


def _written(made: Deciding, net: nn.Module, out: Path, *, machine: Hardware, replace: bool, seed: int,
             fixed: Exception | None = None) -> Path:  # fmt: skip
    """The artifact; `fixed` is why its lengths are not free."""
    rows = rows_of(made, seed)
    with atomic_folder(out, replace=replace) as folder:
        program = write(made, net, folder, checks=to_check(made, made.net, rows[:_TRIED]))
        write_program(program, folder)
        family = load(folder, threads=machine.threads)
        proof = prove(made, made.net, family, rows)
        _judged(proof, net)
        for lengths, form in made.tried[1:]:
            _judged(prove(made, made.net, family, _at(form, seed), force=False), net, lengths)
        family.check()
        program["conditions"] = {
            "pliant": __version__, "torch": torch.__version__, "machine": machine.machine, "threads": machine.threads,
            "states": len(made.blocks), "edges": proof.edges, "edges taken by inputs": proof.taken,
            "edges checked": proof.covered, "proof": proof.told(), "row by row": _reasons(made),
            "lengths": _lengths(made, fixed),
        }  # fmt: skip
        entry = program["entries"][0]["measured"]
        entry["parameters"] = float(sum(tensor.numel() for tensor in net.parameters()))
        entry |= _latency(made, family, machine)
        entry["max_rel_error"] = max([proof.largest, *(block.error for block in made.blocks)])
        card = _card(program) | {"program": _traffic(made, family, proof)}
        write_json(folder / "card.json", card)
        write_atomic(folder / "card.md", markdown(card))
        write_program(program, folder)
        load(folder)
    told = f"; {_lengths(made, fixed)}" if made.spans or fixed else ""
    print(f"{program['name']}: {len(made.blocks)} states; {proof.told()}{told}")
    return out


def _at(form: InputForm, seed: int) -> list[Any]:
    """Rows of one length."""
    generator = seeded(seed, "compile", "lengths")
    return [form.rows(1), *[form.random(1, generator) for _ in range(_EACH)]]


def _lengths(net: Deciding, fixed: Exception | None) -> str:
    """Which lengths are free, and else why not."""
    if fixed is not None:
        reason = " ".join(str(fixed).split()) if isinstance(fixed, PliantError) else f"{type(fixed).__name__}: {fixed}"
        return f"lengths are the example's: {reason.splitlines()[0][:800]}"
    if not net.spans:
        return "no input is a sequence"
    spans = ", ".join(f"{name} from {least} to {most}" for name, (least, most) in net.spans.items())
    each = ", ".join("x".join(map(str, lengths.values())) for lengths, _ in net.tried)
    return f"free lengths: {spans} (compared at {each})"


def rows_of(net: Deciding, seed: int, count: int = _ROWS) -> list[Any]:
    """The rows of the example one by one, and random ones like them."""
    form = net.form
    generator = seeded(seed, "compile", "proof")
    if net.fixed:
        return [form.example, *[form.random(1, generator) for _ in range(count)]]
    tensors = form.tensors(form.example)
    rows = [form.assemble([tensor[n : n + 1] for tensor in tensors]) for n in range(min(len(tensors[0]), 64))]
    return [*rows, *[form.random(1, generator) for _ in range(count)]]


def _judged(proof: Proof, net: nn.Module, lengths: Mapping[str, int] | None = None) -> None:
    if proof.mismatches or proof.forced_mismatches:
        at = f" at {dict(lengths)}" if lengths else ""
        raise PliantError(
            f"the program answers otherwise than the network{at} ({proof.told()}; {proof.example})",
            where=type(net).__name__,
            fix="compare the network on two equal inputs: it must give the same twice; else report it",
        )


def _reasons(net: Deciding) -> str:
    found = sorted({block.rows for block in net.blocks if isinstance(block.rows, str) and block.proto is not None})
    return "; ".join(found)[:900] or "no block"


def _latency(net: Deciding, family: Family, machine: Hardware) -> dict[str, float]:
    row = arrays(net.form.rows(1))
    family.run(row)
    latency = machine.latency(lambda: family.run(row), seconds=0.1)
    return {"latency_ms": latency.median_ms, "latency_iqr_ms": latency.iqr_ms, "latency_min_ms": latency.min_ms}


def _traffic(net: Deciding, family: Family, proof: Proof) -> dict[str, Any]:
    """How the rows of the proof went through the program, and how long one visit of each state takes."""
    steps = [state.step for state in family.program.states if state.step is not None]
    edges = [(number, side) for number, step in enumerate(steps) for side in range(len(step.next.edges))]
    return {
        "rows": proof.inputs,
        "edges": [[*edge, proof.ways[edge], edge in proof.checked] for edge in edges],
        "micros": [round(1e6 * each, 3) for each in block_seconds(net, family)],
    }


def block_seconds(net: Deciding, family: Family, repeats: int = 7) -> list[float]:
    """Seconds of one visit of each state on random values: the least of some runs, 0 where nothing is computed.

    Lengths are the example's.
    """
    generator = np.random.default_rng(0)
    found = []
    for number, state in enumerate(family.program.states):
        assert state.step is not None  # all states of a program that decides
        block = family._executor.stepper.block(number)
        if block.run is None:
            found.append(0.0)
            continue
        shapes = [net.flow.shape(net.flow.states[number].params[old][1]) for old in net.live[number]]
        pairs = zip(shapes, state.step.params, strict=True)
        values = [np.asarray(generator.random(shape) > 0.5).astype(kind.dtype) for shape, kind in pairs]
        feeds = {name: values[place] for place, name in block.inputs}
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            block.run(block.names, feeds, None)
            times.append(time.perf_counter() - begun)
        found.append(min(times))
    return found


def _card(program: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": program["name"],
        "what": f"A network whose way depends on the data: {len(program['states'])} states, compiled by pliant "
        f"{__version__}. Load it with `pliant_runtime.load`.",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": [{"config": item["config"], "measured": item["measured"]} for item in program["entries"]],
        "signature": program["signature"],
        "data": {},
        "conditions": program["conditions"],
        "sizes": sizes_of(program),
        "tensors_stored_apart": 0,
        "licence": "Unknown. The licences of the network and of the data it was trained on apply.",
    }  # fmt: skip
