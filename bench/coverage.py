"""coverage: every network of the zoo traced, all laws on it, what bends of it and what half width leaves.

One job a network; its facts are cached under the sources of everything that decides them, so that a run that was
stopped goes on where it was.
"""

import statistics
import sysconfig
import time
import traceback
from collections.abc import Mapping
from typing import Any

from bench._common import Outcome, cached, in_workers, one_thread, sources
from pliant.core import PliantError
from pliant.elastic import Elastic
from pliant.testing import LAWS, LawBroken, Subject, zoo_subjects
from pliant.testing.entry import Groups, found_groups
from pliant.testing.subject import case_of
from pliant.testing.zoo import ZOO

REQUIRED = (
    "networks", "traced", "laws_passed", "laws_broken", "refused_with_reason", "median_parameter_coverage",
    "median_half_width_share", "hf_families", "expected_groups_asserted",
)  # fmt: skip
DECIDING = ("core", "graph", "nets", "elastic", "export", "testing")
"""Rooms whose sources decide what a network's laws say."""


def run() -> Outcome:
    """The whole row."""
    one_thread()
    names = list(ZOO)
    facts = dict(zip(names, in_workers(facts_of, names), strict=True))
    settings = {
        "network": "tiny, random weights; sizes in pliant/testing/zoo_*.py",
        "median_half_width_share": "parameters of space.uniform(0.5), depth whole, over those of the largest",
        "median_parameter_coverage": "share of the parameters on an elastic axis or in a span; 0 where refused",
        "laws": list(LAWS), "table": {name: row(each) for name, each in facts.items()},
    }  # fmt: skip
    cpu = sum(float(each["cpu_seconds"]) for each in facts.values())
    return Outcome(summary(facts), "random inputs", [0], cpu_seconds=cpu, settings=settings)


def summary(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a table of facts."""
    traced = {name: each for name, each in facts.items() if not each["refused"]}
    held = [name for name, each in traced.items() if all(law["holds"] for law in each["laws"].values())]
    return {
        "networks": len(facts),
        "traced": len(traced),
        "laws_passed": len(held),
        "laws_broken": len(traced) - len(held),
        "refused_with_reason": len(facts) - len(traced),
        "median_parameter_coverage": statistics.median(float(each.get("coverage", 0)) for each in facts.values()),
        "median_half_width_share": statistics.median(float(each.get("half_share", 1)) for each in facts.values()),
        "hf_families": len({ZOO[name].family for name in facts} - {None}),
        "expected_groups_asserted": sum(each.get("as_expected") is not None for each in facts.values()),
        "expected_groups_found": sum(each.get("as_expected") is True for each in facts.values()),
        "laws": len(LAWS),
    }


def row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A network in the table of the results: its facts, of the laws only those that broke."""
    broken = {law: said["figures"][:200] for law, said in facts.get("laws", {}).items() if not said["holds"]}
    notes = [note.replace(f"{sysconfig.get_path('purelib')}/", "") for note in facts.get("notes", ())]
    found = {key: value for key, value in facts.items() if key != "laws"} | ({"notes": notes} if notes else {})
    return found | ({"broken": broken} if broken else {})


def facts_of(name: str) -> dict[str, Any]:
    """What one network shows, from the cache where its sources are the same."""
    key = {"row": "coverage", "network": name, "sources": sources(__file__, DECIDING)}
    return cached(key, lambda _: measured(name))[1]


def measured(name: str) -> dict[str, Any]:
    """Trace, bend, judge one network of the zoo."""
    begun, subject = time.process_time(), zoo_subjects()[name]
    facts: dict[str, Any] = {"refused": ""}
    try:
        family = case_of(subject).family
    except PliantError as error:
        facts["refused"] = str(error)
    else:
        facts |= described(family, ZOO[name].groups)
        facts["laws"] = {law: judged(subject, law) for law in LAWS}
    return facts | {"cpu_seconds": round(time.process_time() - begun, 1)}


def described(family: Elastic, expected: Groups | None) -> dict[str, Any]:
    """What bends, how much of it, and what does not."""
    space, graph = family.space, family.graph
    found = found_groups(family)
    return {
        "parameters": family.cost(space.largest()).parameters,
        "coverage": round(graph.coverage(), 4),
        "half_share": round(family.cost(space.uniform(0.5)).parameters / family.cost(space.largest()).parameters, 4),
        "groups": found,
        "as_expected": None if expected is None else {kind: sorted(n) for kind, n in expected.items()} == found,
        "dropped": len(family.dropped),
        "rigid": sorted({f"{each.operator} in {each.module}: {each.reason}" for each in graph.rigid}),
        "notes": list(graph.notes),
    }


def judged(subject: Subject, law: str) -> dict[str, Any]:
    """One law on one network. Whatever it raises breaks it: a law that stumbles has not been shown to hold."""
    begun = time.process_time()
    try:
        holds, figures = True, LAWS[law](subject)
    except (LawBroken, PliantError) as error:
        holds, figures = False, str(error)
    except Exception as error:
        holds, figures = False, f"{type(error).__name__}: {error} ({traceback.extract_tb(error.__traceback__)[-1]})"
    return {"holds": holds, "figures": figures[:2000], "cpu_seconds": round(time.process_time() - begun, 2)}
