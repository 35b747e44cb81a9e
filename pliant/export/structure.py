"""What goes in and what comes out of a network, as plain JSON data beside a flat list of tensors.

The grammar of outputs is the artifact's: `{"t": n}` is the n-th tensor, `{"py": value}` a constant, `{"list": [...]}`,
`{"tuple": [...]}` and `{"dict": {...}}` hold more of the same. Dataclasses become dicts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError, call
from pliant.core.forms import leaves_of, rebuilt


def flatten(output: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors of a network's output, depth first, and its structure.

    Raises:
        PliantError: a value that is neither a tensor, nor a container of them, nor a plain constant.
    """
    tensors: list[Tensor] = []
    return tensors, _describe(output, tensors)


def _describe(value: Any, tensors: list[Tensor]) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"t": len(tensors) - 1}
    if value is None or isinstance(value, bool | int | float | str):
        return {"py": value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"dict": {name: _describe(item, tensors) for name, item in fields.items() if item is not None}}
    if isinstance(value, Mapping):
        return {"dict": {str(name): _describe(item, tensors) for name, item in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_describe(item, tensors) for item in value]}
    raise PliantError(
        f"the network's output holds a {type(value).__name__}",
        fix="return tensors, tuples, lists, dicts or dataclasses of them",
    )


def flatten_arrays(output: Any) -> list[Any]:
    """The arrays in tuples, lists and dicts, depth first: the order of `flatten`."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [array for item in output for array in flatten_arrays(item)]
    return [output] if hasattr(output, "dtype") else []


def output_names(structure: Mapping[str, Any]) -> list[str]:
    """A name for every tensor: its place in the structure (`logits`, `hidden_0`); `output` for the only one."""
    names: dict[int, str] = {}

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if "t" in node:
            names[node["t"]] = "_".join(path) if path and not path[0].isdigit() else "_".join(("output", *path))
        elif "dict" in node:
            for key, item in node["dict"].items():
                walk(item, (*path, key))
        else:
            for number, item in enumerate(node.get("tuple") or node.get("list") or []):
                walk(item, (*path, str(number)))

    walk(structure, ())
    return [names[number] for number in range(len(names))]


class InputForm:
    """How the tensors of an example are named and put back together.

    A tensor is called `input`; tensors of a tuple are `input_0`, `input_1`, ...; tensors of a dict keep their keys.
    Those of a nested tuple, list, dict or dataclass are numbered after it (`input_0_1`).
    Everything else in a tuple or dict (None, numbers) is a constant of the exported network.

    Attributes:
        batched: whether axis 0 can be a batch: it has one size in all tensors. Where it has not (the nodes and edges of
            a graph), all sizes stay those of the example.

    Args:
        example: a tensor, a tuple (positional) or a dict (keyword).

    Raises:
        TypeError: another type.
        PliantError: no tensor at all, or a tensor without a batch axis.
    """

    def __init__(self, example: Any) -> None:
        self.example = example
        if isinstance(example, Tensor):
            self.kind = "tensor"
            items: dict[str, Any] = {"input": example}
        elif isinstance(example, tuple | list):
            self.kind, items = "tuple", {f"input_{number}": item for number, item in enumerate(example)}
        elif isinstance(example, Mapping):
            self.kind, items = "dict", {str(key): item for key, item in example.items()}
        else:
            raise TypeError(f"an example is a tensor, a tuple or a dict of tensors, got {type(example).__name__}")
        self._items = items
        self.names = []
        for name, item in items.items():
            leaves = leaves_of(item)
            self.names += [name] if isinstance(item, Tensor) else [f"{name}_{number}" for number in range(len(leaves))]
            if any(leaf.ndim == 0 for leaf in leaves):
                raise PliantError(f"input {name!r} has no axis", fix="axis 0 of every input tensor is the batch")
        if not self.names:
            raise PliantError("the example holds no tensor")
        self.batched = len({len(item) for item in self.tensors(example)}) == 1

    def tensors(self, inputs: Any) -> list[Tensor]:
        """The tensors of other inputs of the same form, in the order of `names`."""
        if self.kind == "tensor":
            return [inputs]
        return leaves_of([inputs[name] for name in self._items] if self.kind == "dict" else list(inputs))

    def assemble(self, tensors: list[Tensor]) -> Any:
        """Inputs like the example with these tensors in place of its own."""
        found = iter(tensors)
        items = {name: rebuilt(item, found) for name, item in self._items.items()}
        if self.kind == "tensor":
            return items["input"]
        return tuple(items.values()) if self.kind == "tuple" else items

    def rows(self, count: int) -> Any:
        """The example with `count` rows (its own, repeated from the start where there are too few) where it has any."""
        if not self.batched:
            return self.example
        tensors = self.tensors(self.example)
        return self.assemble([item[torch.arange(count, device=item.device) % len(item)] for item in tensors])

    def random(self, count: int, generator: torch.Generator) -> Any:
        """`count` rows with the example's dtypes: normal with its mean and spread, or its own integers shuffled.

        Integers are drawn from those that occur in the example, so tokens and indices stay legal; from three axes on
        as whole vectors along the last, which may belong together (the corners of a box). Without a batch the integers
        are the example's own.
        """
        if not self.batched:
            items = self.tensors(self.example)
            return self.assemble([_random_like(t, len(t), generator) if t.is_floating_point() else t for t in items])
        return self.assemble([_random_like(item, count, generator) for item in self.tensors(self.example)])


def _random_like(item: Tensor, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, *item.shape[1:])
    if item.is_floating_point():
        spread, mean = (float(item.double().std()), float(item.double().mean())) if item.numel() > 1 else (1.0, 0.0)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * (spread or 1.0) + mean).to(item.dtype)
    together = item.shape[-1:] if item.dim() > 2 else item.shape[:0]
    known = item.cpu().reshape(-1, *together)
    picks = torch.randint(max(len(known), 1), shape[: len(shape) - len(together)], generator=generator)
    return known[picks]


class Flat(nn.Module):
    """A network whose arguments and results are flat lists of tensors, which is all an exporter understands.

    It says `training = True` while the network inside stays as it is: the fast exporter would otherwise merge
    parameters that merely happen to hold equal numbers (two fresh BatchNorms), and names would be lost.
    """

    def __init__(self, net: nn.Module, form: InputForm) -> None:
        super().__init__()
        self.training = True
        self.net = net
        self._form = form

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The network's output tensors, depth first."""
        return tuple(flatten(call(self.net, self._form.assemble(list(tensors))))[0])
