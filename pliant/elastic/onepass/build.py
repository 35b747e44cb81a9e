"""one_pass: from a network to the one-pass network of its architecture."""

from typing import Any, Literal

from torch import nn

from pliant.core import PliantError
from pliant.elastic.elastic import Elastic, elastic
from pliant.elastic.knobs import knob_of
from pliant.elastic.onepass.network import OnePass
from pliant.elastic.onepass.plan import Plan
from pliant.elastic.onepass.shells import Shells
from pliant.flow.joint import Joint


def one_pass(net: Elastic | nn.Module, example: Any = None, *, shells: int = 4, leak: float = 1.0,
             heads: Literal["own", "shared"] = "own") -> OnePass:  # fmt: skip
    """A new network of a network's architecture that has several widths in one forward pass.

    Every width of the network (channels, neurons, attention heads) is cut into shells at the same shares, and every
    layer is made block-triangular: what shell j computes reads shells 1 to j. Column k of a forward then is what the
    first k shells compute by themselves, exactly: one step trains all widths at about the price of the widest, batch
    statistics are right for all of them, and inference can stop at any width and go on later. Against `pliant.elastic`
    it gives up the upper triangles (the widest network is not the original) and the free choice of each width.

    Layer and RMS norms take, for every shell, the statistics of its own prefix. Depth stays whole.

    Args:
        net: an elastic network, whose frozen widths stay whole, or any `nn.Module`. It is not changed. Its weights
            should be freshly initialised: row blocks are scaled to the inputs they keep.
        example: an input, for an `nn.Module`.
        shells: how many widths.
        leak: share of the gradient that goes from a shell to the earlier ones it reads (the value is the same): 1
            trains small widths for the benefit of large ones too, 0 trains the smallest one as if it were alone. About
            0.3 favours small widths in convolutional networks; transformers are best at 1.
        heads: "own" gives the last layer weights for every width, "shared" one weight for all (and a bias for each).

    Raises:
        PliantError: something reads across shells (squeeze-excite, group norm across shells, softmax or means over a
            width, tied embeddings, ...), nothing bends, or a width has fewer units than shells.
        ValueError: `shells` < 1, `leak` outside [0, 1], or unknown `heads`.
        TypeError: no network, or a module without an example.
    """
    if isinstance(shells, bool) or not isinstance(shells, int) or shells < 1:
        raise ValueError(f"shells must be a whole number of at least 1, got {shells!r}")
    if not 0 <= leak <= 1:
        raise ValueError(f"leak must be in [0, 1], got {leak}")
    if heads not in ("own", "shared"):
        raise ValueError(f"heads must be 'own' or 'shared', got {heads!r}")
    if not isinstance(net, Elastic):
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be an Elastic or an nn.Module, got {type(net).__name__}")
        if example is None:
            raise TypeError("a module needs an example input: one_pass(net, example)")
        net = elastic(net, example, min_size=1, verbose=False)
    if isinstance(net.graph, Joint):
        fix = "take pliant.elastic(net, example), which runs one width at a time"
        raise PliantError("a network that decides goes another way for every width", where=net.name, fix=fix)
    groups = _bending(net)
    if not groups:
        raise PliantError("nothing bends", where=net.name, fix="look at pliant.elastic(net, example).report()")
    plan = Plan(net.graph, Shells(net.graph, groups, shells))
    made = OnePass(net.graph, plan, net.name, leak=float(leak), own_heads=heads == "own")
    return made.train(net.training)


def _bending(net: Elastic) -> list[int]:
    """The groups whose width can be chosen; what was frozen or cannot be reordered stays whole."""
    knobs = {knob.name for knob in net.space}
    return [
        i for i, group in enumerate(net.graph.groups)
        if i not in net.dropped and not group.ordered and knob_of(net.space, group.name) in knobs
    ]  # fmt: skip
