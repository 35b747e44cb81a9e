"""Compile: trained network in, artifact out. One folder with graphs, weights once, and a model card."""

import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pliant.core import atomic_folder, write_atomic, write_json
from pliant.core.calls import map_tensors
from pliant.data import Dataset
from pliant.deploy.card import markdown
from pliant.deploy.draft import calibration, draft, same_signature
from pliant.deploy.layout import CHOICES, Laid, lay_out
from pliant.deploy.measure import compare, latencies, scores
from pliant.deploy.pack import Packer
from pliant.deploy.program import program_of, sizes_of, write_program
from pliant.deploy.programs import compile_deciding, decides_on, only
from pliant.deploy.targets import Sliceable, example_of, full_state, name_of, points_of
from pliant.elastic.branching import Branching
from pliant.export import hardware as processor
from pliant_runtime import __version__, load


def compile(
    net: nn.Module,
    out: str | Path,
    *,
    configs: Any = None,
    data: Any = None,
    example: Any = None,
    layout: str = "auto",
    replace: bool = False,
    seed: int = 0,
) -> Path:
    """Make an artifact that runs with numpy and onnxruntime alone.

    Every sub-network is extracted (BatchNorm re-estimated on training batches when data are given), exported, and
    stored as slices of one weight file; what the loaded artifact answers is compared with torch, its latency and its
    figure on the validation split are measured through the runtime. The folder appears when all of this is done.

    A module that decides on its data (`if` and `while` on tensors, `.item()`, experts chosen by index) becomes a
    program of many states instead, one onnxruntime call per decision. Its forward is read as a program for one row of
    the example; many rows are independent runs of it. It is compared with the module on the rows of `example`, on
    random rows, and over every edge, and the coverage is printed; nothing is scored. The lengths of its sequences
    (tokens [N, T], features [N, T, C]) are free where its code allows that, within bounds that the artifact states;
    it is compared with the module at several lengths. Where one cannot be free, what stands in the way is printed.

    Sub-networks share their weights in one of two forms. "slices": the weights once, a graph for each sub-network, as
    fast as artifacts of their own, but in memory each has its weights. "shells": one graph, in the memory of the
    largest alone, whose units beyond the smallest sub-network's lie behind `If` nodes; for networks of matrix products
    whose hidden widths, heads or blocks bend (a width that a norm reads, or a convolution, cannot). "auto" makes both
    where it can, times them side by side with 1 and 8 rows, and takes shells unless they are slower than 1.15 times
    (8 rows) or 1.35 times (1 row). What was chosen and why is printed, and stored in `layout` of the program and card.

    Args:
        net: an `Elastic`, or any module (an artifact of one sub-network). Not changed.
        out: the folder to make.
        configs: a `Front`, points, configs, or one of these; None is the largest sub-network.
        data: whatever `Dataset.of` takes. Without it nothing is scored, raw samples cannot be given to the artifact,
            and BatchNorm keeps the statistics it has.
        example: an example input; by default from the data, else the network's own.
        layout: "auto", "slices" or "shells".
        replace: whether a folder that is there already is replaced.
        seed: of the calibration batches and of the random rows stored for later checks.

    Returns:
        `out`.

    Raises:
        ValueError: configs the network does not have, or another layout.
        PliantError: `out` exists, an operator cannot be exported, shells are asked for and cannot be, or the artifact
            answers otherwise than torch; for a module that decides also what no program can do
            (`pliant.flow.Rejected`, with the line and the way out).
    """
    out = Path(out)
    if layout not in CHOICES:
        raise ValueError(f"layout must be one of {', '.join(CHOICES)}, got {layout!r}")
    machine = processor("cpu", threads=1)
    dataset = None if data is None else Dataset.of(data, seed=seed)
    points = points_of(net, configs)
    inputs = map_tensors(lambda tensor: tensor.detach().cpu(), example_of(net, example, dataset))
    if isinstance(net, Branching):
        net = only(net, points)
    if not isinstance(net, Sliceable) and decides_on(net, inputs):
        return compile_deciding(net, out, example=inputs, machine=machine, replace=replace, seed=seed)
    batches = calibration(net, dataset, seed)
    with atomic_folder(out, replace=replace) as folder:
        packer = Packer(full_state(net))
        drafts = [
            draft(net, config, example=inputs, batches=batches, packer=packer, folder=folder, seed=seed)
            for config, _ in points
        ]
        same_signature(drafts)
        program = program_of(name_of(net), drafts, packer, dataset, folder)
        write_program(program, folder)
        laid = lay_out(
            layout, program, folder, net=net, drafts=drafts, batches=batches, data=dataset, seed=seed
        )  # fmt: skip
        program, family = laid.program, laid.family
        compare(family, drafts)
        program["conditions"] = {**_versions(), **latencies(family, drafts, machine)}
        program["conditions"] |= {f"dynamic_range_b{rows}": round(value, 4) for rows, value in laid.range.items()}
        if dataset is not None:
            program["conditions"] |= scores(family, drafts, dataset)
            metric = dataset.metric
            program["quality"] = {"name": metric.name, "higher_is_better": metric.higher_is_better}
        elif all("accuracy" in values for _, values in points):
            for one, (_, values) in zip(drafts, points, strict=True):
                one.values["accuracy"] = values["accuracy"]
            program["conditions"]["accuracy"] = "as given with the configs, not measured here"
            program["quality"] = {"name": "accuracy", "higher_is_better": True}
        card = _card(program, dataset, packer)
        write_json(folder / "card.json", card)
        write_atomic(folder / "card.md", markdown(card))
        write_program(program, folder)
        load(folder)
    print(_told(program, laid))
    return out


def _told(program: dict[str, Any], laid: Laid) -> str:
    count = len(program["entries"])
    if count == 1:
        return f"{program['name']}: one network"
    spans = ", ".join(f"{value:.2f}x with {rows} row{'s' * (rows > 1)}" for rows, value in laid.range.items())
    return f"{program['name']}: {count} sub-networks as {laid.why}; largest over smallest: {spans}"


def _versions() -> dict[str, str]:
    return {"pliant": __version__, "torch": torch.__version__}


def _card(program: dict[str, Any], data: Dataset | None, packer: Packer) -> dict[str, Any]:
    count = len(program["entries"])
    family = f"{count} sub-networks of one trained network, sharing its weights" if count > 1 else "One network"
    return {
        "name": program["name"],
        "what": f"{family}, compiled by pliant {__version__}. Load it with `pliant_runtime.load`.",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": [{"config": item["config"], "measured": item["measured"]} for item in program["entries"]],
        "signature": program["signature"],
        "data": {} if data is None else {"name": data.name, "task": data.task, **data.sizes},
        "conditions": program["conditions"],
        "layout": program["layout"],
        "sizes": sizes_of(program),
        "tensors_stored_apart": packer.apart,
        "licence": "Unknown. The licences of the network and of the data it was trained on apply.",
    }
