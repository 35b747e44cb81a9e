"""What no program can hold is refused with the line of the user's code, the reason and the way out."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.flow import Flow, Rejected

COUNT = 0


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.n = 0
        self.seen: list[Any] = []
        self.table = {"a": 1}
        self.register_buffer("count", torch.zeros(1))


class Print(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            print("yes")  # here
        return x


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.n += 1  # here
        return x


class Collects(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.seen.append(1)  # here
        return x


class Writes(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.count.add_(1)  # type: ignore[operator]  # here
        return x


class Global(Base):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT  # here
        if x.sum() > 0:
            COUNT = 1
        return x


class Mask(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x[x > 0].sum()  # here
        return x


class Nonzero(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = torch.nonzero(x).float()  # here
        return x


class Slices(Base):
    def forward(self, x: Tensor) -> Tensor:
        k = int(x.sum().item())
        return x[:, :k]  # here


class Sizes(Base):
    def forward(self, x: Tensor) -> Tensor:
        k = int(x.sum().abs().item())
        return torch.zeros(k, 2)  # here


class Vector(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x > 0:  # here
            return x
        return -x


class Random(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + torch.rand(1)  # here
        return x


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        import random

        if x.sum() > 0 and random.random() > 0.5:  # here
            x = -x
        return x


class Numpy(Base):
    def forward(self, x: Tensor) -> Any:
        if x.sum().numpy() > 0:  # here
            return x
        return -x


class Text(Base):
    def forward(self, x: Tensor) -> Any:
        k = int(x.sum().item())
        name = f"exit{k}"  # here
        return x, name


class TextKey(Base):
    def forward(self, x: Tensor) -> Any:
        k = x.argmax().item()
        return x * self.table["abc"[k]] if x.sum() > 0 else x * self.table[f"{k}"]  # type: ignore[index]  # here


class TensorKey(Base):
    def forward(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return x
        return x * self.table[x.argmax()]  # type: ignore[index]  # here


class Grows(Base):
    def forward(self, x: Tensor) -> Any:
        kept = []
        while x.abs().sum() > 0.1:  # here
            x = x * 0.5
            kept.append(x)
        return kept


class Recursive(Base):
    def down(self, x: Tensor) -> Tensor:
        if x.abs().sum() < 0.1:
            return x
        return self.down(x * 0.5)  # here

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)


class Trying(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:  # here
            if x.sum() > 0:
                x = -x
        except ValueError:
            pass
        return x


class Training(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.drop(x)  # here
        return x


class AsksTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0 and self.training:  # here
            x = -x
        return x


class Steps(Base):
    def forward(self, x: Tensor) -> Tensor:
        for row in self.walk(x):  # here
            x = x + row
        return x

    def walk(self, x: Tensor) -> Any:
        while x.sum() > 1:
            x = x * 0.5
            yield x


class View(Base):
    def forward(self, x: Tensor) -> Any:
        part = x[:, :2]
        if x.sum() > 0:
            part.add_(1)  # here
        return x, part


CASES: dict[type[Base], str] = {
    Print: "side effect",
    Counts: r"self\.n of Counts is set: a side effect",
    Collects: r"self\.seen of Collects is changed",
    Writes: "a tensor of the network is changed",
    Global: "a global variable is set",
    Mask: "follows from the values of a tensor",
    Nonzero: "follows from the values of a tensor",
    Slices: "an index or a size",
    Sizes: "an argument of zeros",
    Vector: r"a tensor of shape \(1, 4\), whose truth is ambiguous",
    Random: "random numbers are drawn",
    PythonRandom: "random numbers are drawn",
    Numpy: "numpy needs the values",
    Text: "a part of a string",
    TextKey: "as a part of a string",
    TensorKey: "a dict is read with a tensor as its key",
    Grows: "kept never repeats",
    Recursive: "calls itself again and again",
    Trying: "a tensor decides inside a `try`",
    Training: "training mode",
    AsksTraining: "training mode",
    Steps: "is a generator",
    View: "shares its memory",
}
TRAINED = (Training, AsksTraining)


def line_of(kind: type[Base]) -> int:
    lines, start = inspect.getsourcelines(kind)
    return start + next(n for n, line in enumerate(lines) if "# here" in line)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_refused_with_the_line_and_the_way_out(kind: type[Base]) -> None:
    torch.manual_seed(0)
    net = kind().train(kind in TRAINED)
    before = {name: value for name, value in vars(net).items() if not name.startswith("_")}
    with pytest.raises(Rejected, match=CASES[kind]) as caught:
        Flow(net, torch.rand(1, 4), limit=60)
    error = caught.value
    assert error.place is not None
    assert (Path(error.place.file).name, error.place.line) == (Path(__file__).name, line_of(kind))
    assert error.fix
    assert "# here" in str(error)
    assert str(error).startswith(f"{error.place.file}:{error.place.line}: ")
    assert "\n" not in str(error)
    after = {name: value for name, value in vars(net).items() if not name.startswith("_")}
    assert after == before
    assert net.seen == []


def test_torch_modules_can_be_changed_again_afterwards() -> None:
    with pytest.raises(Rejected):
        Flow(Counts().eval(), torch.rand(1, 4))
    net = Counts()
    net.n = 3
    assert net.n == 3


def test_a_network_in_training_mode_that_does_not_mind_is_taken() -> None:
    class Plain(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) if x.sum() > 0 else x

    assert len(Flow(Plain().train(), torch.rand(1, 4)).states) == 3
