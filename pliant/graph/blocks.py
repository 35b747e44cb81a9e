"""Blocks: modules that give out one tensor of the shape of the one they take, so that they can be left out."""

from collections.abc import Callable
from dataclasses import dataclass

from pliant.graph.inner import around
from pliant.graph.ir import TRAINING, Program, refs

Like = Callable[[str], object]
"""What two tensors must have in common to stand for each other (shape and dtype); None for what is no tensor."""


@dataclass(frozen=True)
class Block:
    """A module as a part of a program.

    Args:
        module: its path.
        nodes: its calls, in order.
        entries: values from outside that they read, states aside.
        exits: values of theirs that are read outside.
    """

    module: str
    nodes: tuple[str, ...]
    entries: tuple[str, ...]
    exits: tuple[str, ...]

    def ends(self, like: Like) -> tuple[str, str] | str:
        """The tensors that enter and leave, or why it cannot be left out."""
        exits = [name for name in self.exits if like(name) is not None]
        if len(exits) != 1:
            return f"it gives out {len(exits)} tensors" if exits else "it gives out no tensor"
        same = [name for name in self.entries if like(name) == like(exits[0])]
        if len(same) == 1:
            return same[0], exits[0]
        count = f"{len(same)} of the tensors it takes are" if same else "none of the tensors it takes is"
        return f"{count} like the one it gives out"


def find_blocks(program: Program, trainable: set[str]) -> list[Block]:
    """Every module with parameters that is not the whole network, in the order of their first calls."""
    states = {node.name: node.target for node in program.states}
    users: dict[str, list[str]] = {ref.name: [""] for ref in refs(program.output)}
    reads: dict[str, list[str]] = {}
    own: dict[str, list[str]] = {}
    for node in program:
        reads[node.name] = [ref.name for ref in refs((node.args, node.kwargs)) if ref.name != TRAINING]
        for name in reads[node.name]:
            users.setdefault(name, []).append(node.name)
        if node.kind == "call":
            for path in around(node.module):
                own.setdefault(path, []).append(node.name)
    found = []
    for path, names in own.items():
        inside = set(names)
        entries = dict.fromkeys(name for n in names for name in reads[n] if name not in inside)
        exits = [name for name in names if not inside.issuperset(users.get(name, ()))]
        if any(states.get(name) in trainable for name in entries):
            entered = tuple(name for name in entries if name not in states)
            found.append(Block(path, tuple(names), entered, tuple(exits)))
    return found
