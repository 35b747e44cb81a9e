"""Free sequence lengths of a network that is compiled: which inputs have one, and from where to where it may go."""

from collections.abc import Mapping, Sequence

import torch

from pliant.core import PliantError, call, seeded
from pliant.export.structure import InputForm
from pliant.flow import Flow
from pliant.flow.needs import samples_of
from pliant.flow.sizes import Fact, Lengths, Sizes

MOST = 64
"""Lengths up to this, or up to four times the example's, are tried."""
_TIMES = 4


def sequences(form: InputForm) -> tuple[list[dict[int, str]], dict[str, int]]:
    """The axes of the inputs that are lengths, per tensor with the length's name, and the lengths of the example.

    Tokens [N, T] and features [N, T, C] have one; inputs that are equally long share it, and so do masks [N, T].
    """
    tensors = form.tensors(form.example)
    found: dict[int, str] = {}
    for tensor in tensors if form.batched else ():
        if tensor.dim() == (3 if tensor.is_floating_point() else 2) and tensor.shape[1] > 1:
            found.setdefault(int(tensor.shape[1]), "L" if not found else f"L{len(found) + 1}")
    axes = [
        {1: found[int(tensor.shape[1])]} if tensor.dim() in (2, 3) and int(tensor.shape[1]) in found else {}
        for tensor in tensors
    ]
    return axes, {name: size for size, name in found.items()}


def resized(form: InputForm, free: Sequence[Mapping[int, str]], lengths: Lengths) -> InputForm:
    """The example at other lengths: cut, or repeated from its start."""
    tensors = []
    for tensor, axes in zip(form.tensors(form.example), free, strict=True):
        for axis, name in axes.items():
            tensor = tensor.index_select(axis, torch.arange(lengths[name]) % tensor.shape[axis])
        tensors.append(tensor)
    return InputForm(form.assemble(tensors))


class Bounds:
    """From where to where lengths may go.

    Args:
        flow: the network, taken apart with free lengths.
        form: of its inputs.
        sizes: the facts its code counts on.

    Attributes:
        spans: length to its least and its most.
        why: what stands in the way of more, in words.
    """

    def __init__(self, flow: Flow, form: InputForm, sizes: Sizes) -> None:
        self.flow, self.form, self.sizes = flow, form, sizes
        self.facts = list({str(fact.relation): fact for fact in sizes.facts}.values())
        self.spans: dict[str, tuple[int, int]] = {}
        self.why: list[str] = []
        for name, size in sizes.example.items():
            top = max(MOST, _TIMES * size)
            self.spans[name] = (self._end(name, size, 2), self._end(name, size, top))

    def _end(self, name: str, start: int, end: int) -> int:
        """The last length, on the way from the example's to an end, up to which all goes well."""
        step = 1 if end > start else -1
        last = start
        while last != end:
            fact = next((each for each in self.facts if not each.holds(self._at(name, last + step))), None)
            if fact is not None:
                self.why.append(told(fact))
                break
            last += step
        if last == start or self._runs(name, last):
            return last
        good, bad = start, last
        while abs(bad - good) > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._runs(name, middle) else (good, middle)
        self.why.append(f"the network itself fails at {name} = {bad} ({self.reason})")
        return good

    def _at(self, name: str, length: int) -> dict[str, int]:
        return {**self.sizes.example, name: length}

    def _runs(self, name: str, length: int) -> bool:
        """Whether the network, and each of its blocks, runs at a length."""
        lengths = self._at(name, length)
        try:
            with torch.no_grad(), self.flow.still(), self.flow.at(lengths):
                call(self.flow.net, resized(self.form, self.sizes.free, lengths).rows(1))
                for state in self.flow.states:
                    params = [(dtype, self.flow.shape(shape)) for dtype, shape in state.params]
                    self.flow.outputs(state, samples_of(params, seeded(0, "compile", "bounds")))
        except Exception as error:  # whatever the network's own code raises
            self.reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
            return False
        return True

    def tried(self) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
        """Lengths at which graphs are made, and further ones at which they are compared with torch.

        Raises:
            PliantError: there are too few.
        """
        made, more = [dict(self.sizes.example)], []
        for name, (least, most) in self.spans.items():
            size = self.sizes.example[name]
            around = [length for length in (size + 1, size + 3, size - 1, size - 3, size + 2, size - 2, size + 4)
                      if least <= length <= most]  # fmt: skip
            if len(around) < 2:
                why = self.why or ["the network runs at no other lengths"]
                raise PliantError(f"the length {name} stays {size}: {'; '.join(why)}")
            made += [self._at(name, length) for length in around[:2]]
            further = {least, most, (least + most) // 2, (least + size) // 2} - {each[name] for each in made}
            more += [self._at(name, length) for length in sorted(further)]
        if len(self.spans) > 1:
            more += [{name: span[side] for name, span in self.spans.items()} for side in (0, 1)]
            if any(not fact.holds(lengths) for fact in self.facts for lengths in more):
                raise PliantError("the lengths of the inputs depend on each other")
        return made, more


def told(fact: Fact) -> str:
    """A fact in words, with its line."""
    place = fact.place
    where = "" if place is None else f" at {place.short}" + (f" in `{place.source}`" if place.source else "")
    return f"{str(fact.relation).replace('Eq(', 'equal(')} is taken for granted{where}"
