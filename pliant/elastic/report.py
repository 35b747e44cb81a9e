"""Report: what of a network bends, what stays rigid and why."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from pliant.core import Space
from pliant.elastic.knobs import knob_of
from pliant.graph.analyse import Rigid
from pliant.graph.graph import Cost, Graph
from pliant.graph.sizes import KINDS

_UNITS = {"kernel": "taps", "resolution": "pixels", "length": "positions"}
"""What the units of a kind are called, where they are no units that can change places."""


@dataclass(frozen=True)
class GroupRow:
    """A group: its knob name, unit count, choices, the shares of parameters and FLOPs it has a hand in, where it is."""

    name: str
    kind: str
    units: int
    choices: tuple[int, ...]
    parameters_share: float
    flops_share: float
    where: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `Elastic.report()` returns; prints as a table."""

    network: str
    groups: tuple[GroupRow, ...]
    depth: tuple[tuple[str, int, int], ...]
    rigid: tuple[Rigid, ...]
    notes: tuple[str, ...]
    coverage: float
    subnetworks: int
    whole: Cost
    smallest: Cost

    def headline(self) -> str:
        """One line."""
        kinds = [row.kind for row in self.groups]
        asked = [(kind, kinds.count(kind)) for kind in _UNITS if kind in kinds]
        counted = [f"{sum(kind not in _UNITS for kind in kinds)} widths"]
        counted += [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in asked]
        counted += [f"{len(self.depth)} depths"]
        return (
            f"{', '.join(counted)}, {_count(self.subnetworks)} sub-networks; "
            f"{self.coverage:.0%} of {_count(self.whole.parameters)} parameters bend"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = asdict(self)
        data["depth"] = [{"name": name, "nodes": nodes, "parameters": count} for name, nodes, count in self.depth]
        data["headline"] = self.headline()
        return data

    def __str__(self) -> str:
        lines = [f"{self.network}: {self.headline()}"]
        lines.append(f"  FLOPs {_count(self.smallest.flops)} to {_count(self.whole.flops)}, "
                     f"parameters {_count(self.smallest.parameters)} to {_count(self.whole.parameters)}")  # fmt: skip
        width = max([len(row.name) for row in self.groups] + [len(name) for name, _, _ in self.depth] + [4])
        for row in self.groups:
            choices = "/".join(map(str, row.choices)) if row.choices else "whole"
            units = f"{row.units:>5} {_UNITS.get(row.kind, 'units'):<5}"
            lines.append(f"  {row.name:<{width}}  {units}  {choices:<20} {row.parameters_share:>4.0%} of parameters")
        for name, _, count in self.depth:
            lines.append(f"  {name:<{width}}  {'keep or skip':>11}  {_count(count):>20} parameters")
        if not self.groups and not self.depth:
            lines.append("  nothing bends")
        lines += [f"  rigid: {r.operator} {r.module} {r.line}: {r.reason}" for r in self.rigid]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{escape(row.name)}</code></td><td>{row.units}</td>"
            f"<td>{'/'.join(map(str, row.choices)) or 'whole'}</td>"
            f"<td>{row.parameters_share:.0%}</td><td>{row.flops_share:.0%}</td></tr>" for row in self.groups
        )  # fmt: skip
        rows += "".join(
            f"<tr><td><code>{escape(n)}</code></td><td></td><td>keep or skip</td><td>{_count(c)}</td><td></td></tr>"
            for n, _, c in self.depth
        )
        rigid = "".join(
            f"<li><code>{escape(r.operator)}</code> {escape(r.module)} {escape(r.line)}: {escape(r.reason)}</li>"
            for r in self.rigid
        )
        rigid += "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<div><b>{escape(self.network)}</b>: {escape(self.headline())}"
            f"<table><tr><th>knob</th><th>units</th><th>choices</th><th>parameters</th><th>FLOPs</th></tr>"
            f"{rows}</table>{f'<ul>{rigid}</ul>' if rigid else ''}</div>"
        )


def make_report(graph: Graph, space: Space, network: str, dropped: Sequence[int]) -> Report:
    """The report of a graph under a space."""
    knobs = {knob.name: knob.choices for knob in space.knobs}
    total = sum(graph.states[name].numel() for name in graph.parameters) or 1
    flops = sum(_product(constant, axes) for _, constant, axes in graph.analysis.macs) or 1.0
    rows = []
    for i, group in enumerate(graph.groups):
        if i in dropped:
            continue
        touched = 0.0
        for name in {name for name, _ in group.where if name in graph.parameters}:
            free = np.prod([(axis.group != i).mean() for axis in graph.state_axes[name].values()])
            touched += graph.states[name].numel() * (1 - float(free))
        share = sum(_product(c, axes) for _, c, axes in graph.analysis.macs if any((a.group == i).any() for a in axes))
        where = tuple(f"{name}[{axis}]" for name, axis in group.where) or (group.name.partition(":")[2],)
        choices = tuple(int(c) for c in knobs.get(knob_of(space, group.name), ()))
        if group.kind in KINDS and choices:
            share = _sized(graph, i, choices[0])
        rows.append(GroupRow(group.name, group.kind, group.units, choices, touched / total, share / flops, where))
    nodes = {node.name: node for node in graph.program}
    depth = []
    for name, span in zip(graph.span_names, graph.spans, strict=False):  # sums have no name
        own = {nodes[n].target for n in span.nodes if nodes[n].kind == "state"} & graph.parameters
        depth.append((name, len(span.nodes), sum(graph.states[n].numel() for n in own)))
    everything = (True,) * len(graph.spans)
    smallest = space.smallest()
    least = graph.counts({i: int(smallest.get(knob_of(space, g.name), g.units)) for i, g in enumerate(graph.groups)})
    spans = tuple(bool(smallest.get(knob_of(space, name), True)) for name in graph.span_names)
    whole = graph.cost(graph.counts({}), everything)
    told = tuple(graph.rigid), tuple(graph.notes), graph.coverage(), space.size
    return Report(network, tuple(rows), tuple(depth), *told, whole, graph.cost(least, spans))


def _sized(graph: Graph, group: int, least: int) -> float:
    """Multiply-accumulates of the calls whose cost follows an input's size."""
    scales = graph.scales_at(graph.counts({group: least}))
    return sum(_product(c, axes) for (_, c, axes), scale in zip(graph.analysis.macs, scales, strict=True) if scale != 1)


def _product(constant: float, axes: Sequence[Any]) -> float:
    return constant * float(np.prod([len(axis.group) for axis in axes]))


def _count(n: int) -> str:
    """A number for reading: 1,234 or 2.54 M or 1.8e+19."""
    if n >= 10**15:
        power = int(math.log10(n) + 1e-12)
        return f"{n // 10 ** (power - 2) / 100:.3g}e+{power}"
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,}"
