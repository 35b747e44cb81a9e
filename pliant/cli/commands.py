"""What the commands do, each a thin user of the public functions; results are returned as JSON data."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.cli.models import build, parse_args
from pliant.cli.runs import RunConfig, claimed
from pliant.cli.tables import front_table, say, table
from pliant.core import PliantError

if TYPE_CHECKING:
    from torch import nn

    from pliant.data import Dataset
    from pliant.elastic import Elastic
    from pliant.search import Front, SearchSettings

Json = dict[str, Any]


def parse_shape(text: str) -> tuple[int, ...]:
    """`1,28,28` or `1x28x28` as numbers. Raises `ValueError` for anything else."""
    try:
        shape = tuple(int(part) for part in re.split("[,x]", text.strip("()[] ")))
    except ValueError as error:
        raise ValueError(f"--shape takes whole numbers such as 1,28,28, got {text!r}") from error
    if any(size < 1 for size in shape):
        raise ValueError(f"--shape takes positive numbers, got {text!r}")
    return shape


def parse_bound(text: str) -> tuple[str, bool, float]:
    """`latency_ms<=2` as name, whether it is an upper bound, and value. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"\s*([A-Za-z_][\w.]*)\s*(<=?|>=?)\s*([^\s=]+)\s*", text)
    try:
        if match is None:
            raise ValueError("no bound")
        return match[1], match[2][0] == "<", float(match[3])
    except ValueError as error:
        raise ValueError(f"--where takes a bound such as 'latency_ms<=2', got {text!r}") from error


def facts_of(dataset: "Dataset") -> Json:
    """What the data say about a network: shape of one input and number of outputs."""
    return {"shape": list(dataset.shape), "classes": dataset.outputs}


def look(
    model: str, *, data: str | None, shape: str | None, args: Sequence[str], seed: int, html: Path | None = None
) -> Json:
    """The report of a network, also as a page where `html` names a file.

    Without `data` and `shape`, pliant's own networks take their default shape.
    """
    import torch

    from pliant.data import load
    from pliant.elastic import elastic

    if data is not None and shape is not None:
        raise ValueError("give --data or --shape, not both")
    keywords = parse_args(args)
    if data is not None:
        dataset = load(data, seed=seed)
        net, example = build(model, keywords, given=facts_of(dataset), seed=seed), dataset.example(2)
    else:
        sizes = parse_shape(shape) if shape else None
        net = build(model, keywords, given={"shape": list(sizes)} if sizes else {}, seed=seed)
        sizes = sizes or _default_shape(model, keywords)
        kind = torch.int64 if _takes_tokens(net) else torch.float32
        example = torch.zeros(2, *sizes, dtype=kind) if kind == torch.int64 else torch.randn(2, *sizes)
    family = elastic(net, example)
    found = family.report()
    cost = family.cost(family.space.largest())
    say(str(found))
    costs = {"flops": cost.flops, "parameters": cost.parameters, "bytes": cost.bytes}
    say(table(["whole network", ""], [[name, f"{value:,}"] for name, value in costs.items()]))
    result = {"model": model, "report": found.to_dict(), "cost": costs, "sub_networks": family.space.size}
    if html is not None:
        from pliant.report import write_look

        say(f"{write_look(family, html)}")
        result["html"] = str(html)
    return result


def _takes_tokens(net: "nn.Module") -> bool:
    """Whether the first layer with parameters is an embedding, so that its input is whole numbers."""
    from torch import nn

    first = next((m for m in net.modules() if next(m.parameters(recurse=False), None) is not None), None)
    return isinstance(first, nn.Embedding)


def _default_shape(model: str, keywords: Json) -> tuple[int, ...]:
    import inspect

    from pliant.cli.models import find_factory

    factory, own = find_factory(model)
    shape = keywords.get("shape")
    if shape is None and own:
        shape = inspect.signature(factory).parameters["shape"].default
    if shape is None:
        raise ValueError(f"what does {model} take? Give --data D, or --shape such as 1,28,28 (without the batch)")
    return tuple(shape)


def load_data(config: RunConfig) -> "Dataset":
    """The data of a run, the same split every time."""
    from pliant.data import load

    return load(config.data, seed=config.seed, limit=config.limit)


def train(run: Path, config: RunConfig, *, hint: bool = True) -> Json:
    """Trains, or goes on training, the run of `config`; the finished network lies in RUN/model.

    With `hint` it says what to do next.
    """
    import pliant
    from pliant.core import resolve
    from pliant.elastic import Elastic, elastic, recipes

    config = config.anchored()
    recipe = resolve(recipes, config.recipe, what="recipe")()
    if (run / "config.json").is_file():
        config.require_same(run)
    dataset = load_data(config)
    model = run / "model"
    with claimed(run, config):
        if model.exists():
            net = Elastic.load(model)
            say(f"{run} is trained already")
        else:
            net = elastic(
                build(str(config.model), config.args, given=facts_of(dataset), seed=config.seed), dataset.example(2)
            )
            check_fit(net, dataset)
            say(str(net.report()))
            pliant.train(
                net, dataset, recipe=recipe, epochs=config.epochs, run=run, settings=settings(config), seed=config.seed
            )
            net.save(model)
    value = measured(net, dataset)
    metric = dataset.metric.name
    say(f"whole network: validation {metric} {value:.4f}")
    if hint:
        say(f"next: pliant search {run}")
    return {"run": str(run), "model": str(model), "metric": metric, "validation": value, "sub_networks": net.space.size}


def check_fit(net: "Elastic", dataset: "Dataset") -> None:
    """Raises `PliantError` when a network has another number of outputs than the data have classes or values."""
    import torch

    from pliant.core import call, main_output
    from pliant.learn import in_mode

    with in_mode(net, False), torch.no_grad():
        shape = tuple(main_output(call(net, dataset.example(2))).shape)
    sides = shape[1:] if dataset.task == "dense" else shape[-1:]  # dense: classes on either axis
    if dataset.task != "regress" and len(shape) > 1 and dataset.outputs not in sides:
        raise PliantError(
            f"the network's output is {list(shape)} for two samples, the data have {dataset.outputs} classes",
            where=net.name,
            fix=f"give it {dataset.outputs} outputs",
        )


def measured(net: "Elastic", dataset: "Dataset") -> float:
    """The metric of the whole network, calibrated as every reported figure is, on the validation split."""
    from pliant.learn import evaluate
    from pliant.search.objectives import Candidate, Context

    whole = Candidate(Context(net, train=dataset.train), net.space.largest()).module
    return evaluate(whole, dataset.val, metric=dataset.metric.name)


def settings(config: RunConfig) -> Any:
    """`Settings` with what was given on the command line, and its own defaults for the rest."""
    from pliant.learn import Settings

    given: Json = {"lr": config.lr, "batch_size": config.batch_size}
    return Settings(**{key: value for key, value in given.items() if value is not None})


def open_run(run: Path) -> tuple["Elastic", "Dataset", RunConfig]:
    """The trained network, the data and the configuration of a run.

    Raises:
        PliantError: no run folder, or one whose training has not ended.
    """
    from pliant.elastic import Elastic

    config = RunConfig.load(run)
    if not (run / "model").exists():
        raise PliantError("training has not ended", where=str(run), fix="give its `pliant train` command again")
    return Elastic.load(run / "model"), load_data(config), config


def load_front(run: Path, net: "Elastic") -> "Front":
    """RUN/front.json, checked against the network.

    Raises:
        PliantError: no search yet, or the front is one of another network.
    """
    from pliant.search import Front

    RunConfig.load(run)
    if not (run / "front.json").is_file():
        raise PliantError("no search yet", where=str(run), fix=f"give: pliant search {run}")
    front = Front.load(run / "front.json")
    for point in front:
        try:
            net.space.validate(point.config)
        except ValueError as error:
            raise PliantError(
                f"front.json is of another network ({error})", where=str(run), fix="search again"
            ) from error
    return front


def search_settings(searcher: str, workers: str, on_failure: str) -> "SearchSettings":
    """What `--searcher`, `--workers` and `--on-failure` say. Raises `ValueError` for unknown words."""
    from pliant.core import resolve
    from pliant.search import SearchSettings, searchers

    if workers != "ray" and not workers.isdecimal():
        raise ValueError(f"--workers takes a number or ray, got {workers!r}")
    return SearchSettings(
        proposer=resolve(searchers, searcher, what="searcher")(),
        workers=int(workers) if workers.isdecimal() else workers,
        on_failure=on_failure,
    )


def search(
    run: Path,
    *,
    hardware: str,
    threads: int | None,
    objectives: str,
    trials: int,
    seed: int,
    hint: bool = True,
    settings: "SearchSettings | None" = None,
) -> Json:
    """Searches, or goes on searching, and shows the front. With `hint` it says what to do next."""
    import pliant

    if trials < 1:
        raise ValueError(f"--trials must be at least 1, got {trials}")
    names = tuple(name.strip() for name in objectives.split(",") if name.strip())
    device = pliant.hardware(hardware, threads=threads)
    net, dataset, _ = open_run(run)
    settings = settings or search_settings("ridge", "1", "stop")
    front = pliant.search(
        net, dataset, objectives=names, hardware=device, n_trials=trials, run=run, settings=settings, seed=seed
    )
    say(front_table(front, net.space))
    if hint:
        say(f"next: pliant compile {run} --out {run / 'artifact'}, or pliant report {run}")
    return {
        "run": str(run),
        "trials": len(front.trials),
        "hypervolume": front.hypervolume(),
        "front": front.to_dict()["points"],
    }


def choose(front: "Front", *, best: str | None, where: Sequence[str], pick: int | None) -> "Front":
    """The part of a front that the options of `compile` name.

    Raises:
        ValueError: bounds in the wrong direction, or nothing keeps them; the message names the nearest point.
    """
    from pliant.search import Front

    if best is not None and pick is not None:
        raise ValueError("give --best or --pick, not both")
    limits: Json = {}
    for text in where:
        name, upper, value = parse_bound(text)
        if front.axis(name).maximise == upper:
            raise ValueError(f"{name} is better when {'larger' if upper else 'smaller'}: turn the sign in {text!r}")
        limits[name] = value
    if best is not None:
        return Front([front.best(best, **limits)], front.objectives)
    if limits:
        front.best(**limits)  # says what is nearest when nothing fits
        front = front.within(**limits)
    return front if pick is None else front.pick(pick)


def compile_run(
    run: Path,
    out: Path,
    *,
    best: str | None,
    where: Sequence[str],
    pick: int | None,
    replace: bool,
    layout: str = "auto",
) -> Json:
    """Writes the artifact of the chosen points, their weights shared as `layout` of `pliant.compile` says."""
    import pliant
    from pliant.deploy.layout import CHOICES

    if layout not in CHOICES:
        raise ValueError(f"--layout is one of {', '.join(CHOICES)}, got {layout!r}")
    if out.exists() and not replace:
        raise PliantError("exists already", where=str(out), fix="choose another --out or give --replace")
    net, dataset, _ = open_run(run)
    chosen = choose(load_front(run, net), best=best, where=where, pick=pick)
    say(front_table(chosen, net.space))
    path = pliant.compile(net, out, configs=chosen, data=dataset, replace=replace, layout=layout)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    say(f"{path}: {len(chosen)} sub-networks, {size / 1e6:.2f} MB; load it with pliant_runtime.load({str(path)!r})")
    return {"artifact": str(path), "bytes": size, "configs": [dict(point.config) for point in chosen]}


def report(run: Path, *, separate: int = 0) -> Json:
    """Writes RUN/report.html; with `separate` so many points of the front are trained alone first.

    For an artifact of a network that decides it writes the picture of its program beside it.
    """
    from pliant.report import write_program_page, write_report

    if (run / "program.json").is_file():
        page = write_program_page(run)
        say(f"{page}")
        return {"report": str(page), "bytes": page.stat().st_size}
    net, dataset, config = open_run(run)
    if separate:
        train_alone(run, net, dataset, config, count=separate)
    path = write_report(run, net, data=dataset, model=config.model)
    say(f"{path}")
    return {"report": str(path), "bytes": path.stat().st_size}


def train_alone(run: Path, net: "Elastic", dataset: "Dataset", config: RunConfig, *, count: int) -> None:
    """Trains `count` points of the front and the whole network alone, each as long as the family; resumes."""
    import pliant

    if count < 1:
        raise ValueError(f"--separate must be at least 1, got {count}")
    front = load_front(run, net)
    if config.model is None:
        fix = "call pliant.separate(net, data, configs=front, fresh=model, run=...) there"
        raise PliantError(
            "the run was made from Python, so its untrained network is not known", where=str(run), fix=fix
        )
    fresh = build(config.model, config.args, given=facts_of(dataset), seed=config.seed)
    configs = [net.space.largest(), *(point.config for point in front.pick(count))]
    found = pliant.separate(
        net,
        dataset,
        configs=configs,
        fresh=fresh,
        epochs=config.epochs,
        run=run,
        settings=settings(config),
        seed=config.seed,
    )
    seconds = sum(one.cpu_seconds for one in found)
    say(f"{len(found)} networks trained separately, {config.epochs} epochs each: {seconds:.0f} CPU s")


def methods() -> Json:
    """The catalogue."""
    from pliant.report import catalogue

    found = catalogue()
    rows = [[m.name, m.facts.title, str(m.facts.year), m.facts.room, ", ".join(m.facts.laws)] for m in found]
    say(table(["method", "paper", "year", "room", "laws"], rows, texts=5))
    return {"methods": [method.to_dict() for method in found]}
