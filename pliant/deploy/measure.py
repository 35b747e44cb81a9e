"""What a loaded artifact does on this machine: compared with torch, timed, and scored."""

from typing import Any

import numpy as np

from pliant.data import Dataset
from pliant.deploy.draft import Draft
from pliant.deploy.verify import Compiled, arrays
from pliant.export import Hardware
from pliant.export.structure import flatten_arrays
from pliant.export.to_onnx import difference
from pliant.learn import evaluate
from pliant.learn.metrics import of_task
from pliant_runtime import Family

_TOLERANCE = 1e-4


def compare(family: Family, drafts: list[Draft]) -> None:
    """Fill `max_abs_error` and `max_rel_error`: the artifact against torch on random and real rows.

    Raises:
        PliantError: a difference above 1e-4 of the largest output.
    """
    for number, draft in enumerate(drafts):
        worst = {"max_abs": 0.0, "max_rel": 0.0}
        for kind, answers in (("random", draft.random), ("real", draft.real)):
            outputs = flatten_arrays(family.run(arrays(answers.inputs), entry=number, preprocessed=True))
            for name, wanted, got in zip(draft.model.outputs, answers.outputs, outputs, strict=True):
                what = f"output {name!r} of the artifact's entry {number} on {kind} rows"
                found = difference(wanted.detach().numpy(), np.asarray(got), what, _TOLERANCE)
                worst = {key: max(worst[key], found[key]) for key in worst}
        draft.values.update(max_abs_error=worst["max_abs"], max_rel_error=worst["max_rel"])


def latencies(family: Family, drafts: list[Draft], hardware: Hardware) -> dict[str, Any]:
    """Fill `latency_ms`, `latency_iqr_ms` and `latency_min_ms`: one row through the runtime, all entries side by side.

    Returns:
        The conditions, for the record.
    """
    form = drafts[0].model.form
    row = arrays(form.rows(1))

    def caller(number: int) -> Any:
        return lambda: family.run(row, entry=number, preprocessed=True)

    result = hardware.compare({str(number): caller(number) for number in range(len(drafts))})
    for number, draft in enumerate(drafts):
        latency = result[str(number)]
        draft.values.update(latency_ms=latency.median_ms, latency_iqr_ms=latency.iqr_ms, latency_min_ms=latency.min_ms)
    return {
        "machine": hardware.machine,
        "threads": hardware.threads,
        "batch": 1,
        "latency": "median over interleaved rounds of the fastest call of a round",
        "noise": round(result.noise, 4),
    }


def scores(family: Family, drafts: list[Draft], data: Dataset) -> dict[str, Any]:
    """Fill the data set's figure on the validation split, computed by the runtime.

    Returns:
        The conditions, for the record.
    """
    metric = data.metric
    for number, draft in enumerate(drafts):
        draft.values[metric.name] = evaluate(Compiled(family, number), data.val, metric=of_task(data.task, metric))
    return {metric.name: f"on the validation split of {data.name}, {len(data.val)} samples, through the runtime"}
