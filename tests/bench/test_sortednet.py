"""The 160 sub-networks of a family: how they are chosen, measured and told of."""

from itertools import pairwise
from pathlib import Path

import pytest

from bench import _common as common
from bench import _families as families
from bench import sortednet
from bench._families import Job, Task
from bench.sortednet import Probe

TINY = Task("digits", blocks=(1, 1), width=8)
JOB = Job(TINY, epochs=1, lr=3e-3, batch_size=256, seed=0)


def test_sizes_are_evenly_spaced_and_all_different() -> None:
    net = families.family(TINY)
    chosen = sortednet.spread(net, 40)
    shares = [share for _, share in chosen]
    assert len({config for config, _ in chosen}) == 40
    assert shares == sorted(shares)
    assert (chosen[0][0], chosen[-1][0]) == (net.space.smallest(), net.space.largest())
    assert max(b - a for a, b in pairwise(shares)) < 0.2
    assert sortednet.spread(net, 40) == chosen
    depths = [knob.name for knob in net.space if knob.kind == "depth"]
    assert all({config[name] for config, _ in chosen} == {False, True} for name in depths)


def test_a_sub_network_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    net = families.family(TINY)
    probe = Probe(JOB, tuple(sorted(net.space.smallest().items())))
    facts = sortednet.measure(probe)
    assert facts["quality"] == pytest.approx(families.qualities(JOB, [net.space.smallest()], "test")[0])
    monkeypatch.setattr(families, "quality", lambda *_: pytest.fail("measured again"))
    assert sortednet.measure(probe) == facts
    sortednet._family.cache_clear()


def test_a_network_alone_is_cut_with_its_largest_units_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it computes as a whole stays."""
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    whole = tuple(sorted(families.family(TINY).space.largest().items()))
    job = Job(TINY, epochs=1, lr=3e-3, batch_size=256, seed=0, config=whole)
    data = families.dataset(TINY)
    family = sortednet._family(job)
    assert families.quality(TINY, family, data.val) == pytest.approx(families.run_job(job)["val"], abs=0.01)
    norms = family.get_parameter("fc.weight").norm(dim=0)
    assert norms[0] > norms[-1]
    sortednet._family.cache_clear()


def test_shares_are_told_by_size() -> None:
    assert sortednet.figures_of([0.45, 0.81, 0.9]) == pytest.approx(
        {"kept_share": (0.5 + 0.9 + 1) / 3, "worst_kept_share": 0.5, "smallest_kept_share": 0.5, "full_accuracy": 0.9}
    )
    rows = sortednet.bands([0.05, 0.2, 0.25, 1.0], {"kept": [0.5, 0.9, 0.8, 1.0]})
    assert [row["FLOPs"] for row in rows] == ["0 to 0.1", "0.1 to 0.25", "0.75 to 1"]
    assert rows[1] == {"FLOPs": "0.1 to 0.25", "subnetworks": 2, "kept": pytest.approx(0.85), "worst kept": 0.8}
