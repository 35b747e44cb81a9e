"""A family of sub-networks as one ONNX graph, made from the graphs of its members and checked against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from pliant.core import Config, PliantError
from pliant.deploy.draft import Draft
from pliant.deploy.match import spans
from pliant.deploy.pack import Source, indices_of
from pliant.deploy.plain_graph import Array, Plain, Unfit, Weight
from pliant.deploy.shell_graph import SWITCHES, Writer, switch_input
from pliant.deploy.shells import Kept, Places, elastic_values, parts_of
from pliant.deploy.targets import Sliceable, extracted
from pliant.export import OnnxModel, to_onnx
from pliant.export.to_onnx import difference
from pliant_runtime.sessions import new_session

_ROWS, _TOLERANCE = 2, 1e-4


@dataclass(frozen=True)
class Member:
    """A sub-network as its own graph: config, ONNX form and where its tensors come from."""

    config: Mapping[str, int | bool]
    model: OnnxModel = field(repr=False)
    sources: Mapping[str, Source] = field(repr=False)


@dataclass(frozen=True)
class Shelled:
    """One graph for a family.

    Args:
        proto: the `onnx.ModelProto`, weights inside; an input of it turns shells on.
        weights: names of all its weights.
        on: per sub-network the switches that are on.
        size: how many switches there are.
        switch: the graph's input for them.
    """

    proto: Any = field(repr=False)
    weights: frozenset[str] = field(repr=False)
    on: tuple[tuple[int, ...], ...]
    size: int
    switch: str = SWITCHES


def shelled(net: nn.Module, drafts: Sequence[Draft], *, batches: list[Any] | None, seed: int) -> Shelled:
    """One graph that holds every sub-network.

    Args:
        net: the family's network.
        drafts: the sub-networks.
        batches: calibration batches, as the drafts had them.
        seed: of random rows.

    Raises:
        Unfit: some part of the networks cannot come in shells; the reason is told.
    """
    if not isinstance(net, Sliceable) or len(drafts) < 2:
        raise Unfit("there is one sub-network only")
    members = [Member(draft.config, draft.model, draft.sources) for draft in drafts]
    whole = largest(net, members, batches, seed)
    made = build(net, whole, members)
    _check(made, drafts)
    return made


def largest(net: nn.Module, members: Sequence[Member], batches: list[Any] | None, seed: int) -> Member:
    """The smallest sub-network that contains all members: one of them, or one exported for this."""
    union = dict(members[0].config)
    for member in members[1:]:
        union = {knob: max(value, member.config[knob]) for knob, value in union.items()}
    for member in members:
        if dict(member.config) == union:
            return member
    try:
        module, sources = extracted(net, Config(union), batches)
        return Member(union, to_onnx(module, members[0].model.form.example, seed=seed), sources)
    except (ValueError, PliantError) as error:
        raise Unfit(f"no sub-network contains all others ({error})") from error


def build(net: Any, whole: Member, members: Sequence[Member]) -> Shelled:
    """The graph of shells, unchecked."""
    plain, parts = _plain(whole), [_plain(member) for member in members]
    own = _values(plain, whole)
    gone = [[knob for knob, value in whole.config.items() if value is True and not m.config[knob]] for m in members]
    lost = {knob: _lost(net, whole, knob) for each in gone for knob in each}
    shapes = {name: value.shape for name, value in own.items()}
    shapes |= {item.name: own_shape for item in plain.inputs if (own_shape := _input_shape(whole, item.name))}
    places, laid = spans(plain, list(zip(parts, gone, strict=True)), lost, shapes)
    others = [
        (part, nodes, _values(part, member))
        for part, nodes, member in zip(parts, laid, members, strict=True)
        if member is not whole
    ]
    values = elastic_values(plain, own, others)
    kept = _kept(plain, whole, members)
    found = parts_of(plain, kept, values)
    family = Writer(plain, found, values, places).write()
    if not family.labels:
        raise Unfit("the sub-networks do not differ")
    on = tuple(
        tuple(
            number
            for number, label in enumerate(family.labels)
            if (
                bool(member.config[label]) if isinstance(label, str) else _uses(found[label[0]].levels[place], label[1])
            )
        )
        for place, member in enumerate(members)
    )
    proto = plain.model(family.nodes, family.weights, [switch_input(len(family.labels))])
    return Shelled(proto, frozenset(family.weights), on, len(family.labels))


def _uses(level: int | None, shell: int) -> bool:
    return level is not None and level >= shell


def _plain(member: Member) -> Plain:
    return Plain(member.model.proto, member.model.state_names)


def _values(plain: Plain, member: Member) -> dict[str, Array]:
    return plain.values(member.model.feeds(member.model.form.rows(_ROWS)))


def _input_shape(member: Member, name: str) -> tuple[int, ...]:
    return tuple(member.model.feeds(member.model.form.rows(_ROWS))[name].shape)


def _lost(net: Any, whole: Member, knob: str) -> set[str]:
    """The weights that go when one block is left out."""
    rest = net.sources(net.space.validate({**whole.config, knob: False}))
    return {name for name in whole.sources if name not in rest}


def _kept(plain: Plain, whole: Member, members: Sequence[Member]) -> dict[str, Kept]:
    """What every sub-network keeps of every weight of the largest.

    Raises:
        Unfit: one has other numbers where it should have a piece of the largest's.
    """
    full = whole.model.weights()
    arrays = [member.model.weights() for member in members]
    found: dict[str, Kept] = {}
    for key, weight in plain.weights.items():
        if weight.name not in full:
            found[key] = Kept(tuple((None,) * weight.array.ndim for _ in members))
            continue
        places = [_places(weight, full[weight.name], whole, m, a) for m, a in zip(members, arrays, strict=True)]
        found[key] = Kept(tuple(places))
    return found


def _places(
    weight: Weight, full: Array, whole: Member, member: Member, arrays: Mapping[str, Array]
) -> tuple[Places | None, ...] | None:
    name = weight.name
    if name not in arrays:
        return None
    array, piece = arrays[name], full
    found: list[Places | None] = [None] * full.ndim
    if name in whole.sources and name in member.sources:
        for axis in range(full.ndim):
            within = _within(_runs(member.sources[name], axis), _runs(whole.sources[name], axis), full.shape[axis])
            if within is not None:
                found[axis], piece = within, np.take(piece, within, axis=axis)
    if piece.shape != array.shape or piece.dtype != array.dtype or not np.array_equal(piece, array, equal_nan=True):
        raise Unfit(f"{name} has other numbers in every sub-network")
    return tuple(found[axis] for axis in weight.order)


def _runs(source: Source, axis: int) -> Any:
    return None if source[1] is None else source[1][axis]


def _within(mine: Any, all_: Any, size: int) -> Places | None:
    """Where the indices of one set of runs lie among those of another; None for all of them in order."""
    if mine == all_:
        return None
    base = np.arange(size) if all_ is None else indices_of(all_)
    place = {int(index): number for number, index in enumerate(base)}
    wanted = [] if mine is None else [int(index) for index in indices_of(mine)]
    if mine is None or any(index not in place for index in wanted):
        raise Unfit("a sub-network keeps units that the largest lacks")
    found = np.array([place[index] for index in wanted], dtype=np.int64)
    return None if np.array_equal(found, np.arange(size)) else found


def _check(made: Shelled, drafts: Sequence[Draft]) -> None:
    """Raises `Unfit` where the graph answers otherwise than torch."""
    try:
        session = new_session(made.proto.SerializeToString())
        for draft, on in zip(drafts, made.on, strict=True):
            for answers in (draft.random, draft.real):
                feeds = {**draft.model.feeds(answers.inputs), SWITCHES: np.isin(np.arange(made.size), on)}
                outputs = session.run(list(draft.model.outputs), feeds)
                for wanted, got in zip(answers.outputs, outputs, strict=True):
                    difference(wanted.detach().numpy(), np.asarray(got), "the graph of shells", _TOLERANCE)
    except Exception as error:  # onnxruntime's errors share no base class; the other form is sound in any case
        raise Unfit(str(error).strip().splitlines()[0][:300]) from error
