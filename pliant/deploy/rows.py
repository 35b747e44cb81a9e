"""A block for one row as a block for many: a row axis before all others, put into the ONNX graph itself.

Every value that follows from the block's inputs gets a leading axis of free size. Operators that work element by
element, or along named axes, move their axes by one; convolutions, recurrent cells and the like see the rows as their
batch. Values that do not follow from the inputs (weights, constants) stay as they are. An operator without a rule makes
the block run row by row, which the program says.

A row of the result is what the block gives for that row alone: checked on random rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pliant.deploy.row_graph import NoRule, Widened
from pliant.deploy.row_rules import RULES
from pliant_runtime.gaps import gap
from pliant_runtime.sessions import new_session

_TOLERANCE = 1e-4


def with_rows(proto: Any, samples: Sequence[Sequence[Tensor]]) -> Any:
    """The same block for many rows, checked.

    Args:
        proto: the block for one row, shapes fixed.
        samples: tensors for the parameters of the program's state, several rows; inputs are called `p#place`.

    Raises:
        NoRule: an operator has no rule, or the result is not what single rows give.
    """
    sample = {item.name: samples[0][int(item.name[2:])].numpy() for item in proto.graph.input}
    widened = Widened(proto, sample, RULES)
    made = widened.made()
    _check(proto, widened.probe, made, samples)
    return made


def compare_rows(proto: Any, made: Any, samples: Sequence[Sequence[Tensor]]) -> None:
    """Compare a block for one row with the same for many.

    Args:
        proto: for one row.
        made: for many.
        samples: as of `with_rows`.

    Raises:
        NoRule: they differ.
    """
    _check(proto, new_session(proto.SerializeToString()), made, samples)


def _check(proto: Any, single: Any, made: Any, samples: Sequence[Sequence[Tensor]]) -> None:
    try:
        session = new_session(made.SerializeToString())
    except Exception as error:  # onnxruntime's errors share no base class
        raise NoRule(f"onnxruntime refuses the batched block ({str(error).strip().splitlines()[0][:200]})") from error
    rows = [{item.name: given[int(item.name[2:])].numpy() for item in proto.graph.input} for given in samples]
    taken = {item.name for item in made.graph.input}
    names = [item.name for item in proto.graph.output]
    wanted = [single.run(names, row) for row in rows]
    feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0] if name in taken}
    try:
        found = session.run(names, feeds)
    except Exception as error:  # as above
        raise NoRule(f"the batched block fails ({str(error).strip().splitlines()[0][:200]})") from error
    for number, name in enumerate(names):
        expected = np.stack([np.asarray(row[number]) for row in wanted])
        got = np.asarray(found[number])
        if got.shape == expected.shape[1:]:
            got = np.broadcast_to(got, expected.shape)
        if not gap(expected, np.ascontiguousarray(got))[1] <= (_TOLERANCE if expected.dtype.kind in "fc" else 0.0):
            raise NoRule(f"output {name} of the batched block differs from single rows")
