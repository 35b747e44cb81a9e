"""Small modules of the same class, filled by hand: index code that knows the architecture and nothing of pliant."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pliant import nets

Cut = Callable[[str, Tensor], Tensor]
"""What of a tensor of the wide network the narrow one holds, by the tensor's name."""


@dataclass(frozen=True)
class Pair:
    """A wide network, the config of a part of it, and that part as a module of the same class.

    Args:
        wide: makes the whole network.
        narrow: makes a module of the part's sizes.
        cut: which entries the part holds.
        example: input.
        kept: knob-name prefix to kept count; the longest prefix that fits counts.
    """

    wide: Callable[[], nn.Module]
    narrow: Callable[[], nn.Module]
    cut: Cut
    example: Callable[[], Tensor]
    kept: dict[str, int]

    def make(self) -> tuple[nn.Module, nn.Module]:
        """Both, the narrow one filled with the wide one's entries."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            wide, narrow = self.wide(), self.narrow()
            with torch.no_grad():
                for tensor in [*wide.parameters(), *wide.buffers()]:
                    if tensor.is_floating_point():
                        tensor.add_(torch.rand(tensor.shape) * 0.1)
        self.fill(narrow, wide)
        return wide, narrow

    def fill(self, narrow: nn.Module, wide: nn.Module) -> None:
        """Copy the part's entries (a tied tensor under the one name that an elastic network has for it)."""
        whole = wide.state_dict()
        parts = {name: self.cut(name, whole[name]) for name in narrow.state_dict() if name in whole}
        left = narrow.load_state_dict(parts, strict=False).missing_keys
        assert left in ([], ["tokens.weight"]), left


def _mlp(name: str, t: Tensor) -> Tensor:
    rows = {"body.0": slice(5), "body.2": slice(7), "head": slice(None)}[name.rpartition(".")[0]]
    columns = {"body.0": slice(None), "body.2": slice(5), "head": slice(7)}[name.rpartition(".")[0]]
    return t[rows] if name.endswith("bias") else t[rows, columns]


def _resnet(name: str, t: Tensor) -> Tensor:
    """Stream and inner channels of stage 0: 4 of 8; of stage 1: 8 of 16."""
    if t.dim() == 0:
        return t
    if name.startswith("fc"):
        return t if name.endswith("bias") else t[:, :8]
    out = 8 if name.startswith("stages.1") else 4
    if t.dim() == 1:
        return t[:out]
    first = name.startswith(("stages.1.0.conv1", "stages.1.0.shortcut"))
    into = 3 if name == "conv1.weight" else 4 if first or out == 4 else 8
    return t[:out, :into]


def _dwsep(name: str, t: Tensor) -> Tensor:
    """Stem 4 of 8, then 8 of 16, then 12 of 24; depthwise weights are [C, 1, 3, 3]."""
    sizes = {"stem": (4, 3), "blocks.0.depthwise": (4, 1), "blocks.0.pointwise": (8, 4), "blocks.1.depthwise": (8, 1),
             "blocks.1.pointwise": (12, 8), "classifier": (5, 12)}  # fmt: skip
    out, into = next(size for prefix, size in sizes.items() if name.startswith(prefix))
    return t if t.dim() == 0 else t[:out] if t.dim() == 1 else t[:out, :into]


def _block(name: str, t: Tensor) -> Tensor:
    """A transformer block: stream 8 of 16, 2 of 4 heads of size 4, hidden 32 of 64."""
    if name.endswith("attn.qkv.weight"):
        return t.reshape(3, 4, 4, 16)[:, :2, :, :8].reshape(24, 8)
    if name.endswith("attn.qkv.bias"):
        return t.reshape(3, 4, 4)[:, :2].reshape(24)
    if "attn.proj.weight" in name:
        return t.reshape(16, 4, 4)[:8, :2].reshape(8, 8)
    if "mlp.fc1" in name:
        return t[:32] if t.dim() == 1 else t[:32, :8]
    if "mlp.fc2.weight" in name:
        return t[:8, :32]
    return t[:8]


def _vit(name: str, t: Tensor) -> Tensor:
    if name.startswith("blocks"):
        return _block(name, t)
    if name in ("cls_token", "pos_embed"):
        return t[:, :, :8]
    if name == "head.bias":
        return t
    return t[:, :8] if name == "head.weight" else t[:8]


def _gpt(name: str, t: Tensor) -> Tensor:
    if name.startswith("blocks"):
        return _block(name, t)
    return t[:8] if name.startswith("norm") else t[:, :8]


def _lstm(name: str, t: Tensor) -> Tensor:
    """6 of 10 in each of four gates."""
    if name == "fc.bias":
        return t
    if name == "fc.weight":
        return t[:, :6]
    gates = t.reshape(4, 10, *t.shape[1:])[:, :6]
    if name.startswith("lstm.weight_hh"):
        gates = gates[:, :, :6]
    return gates.reshape(24, *gates.shape[2:])


def _bilstm(name: str, t: Tensor) -> Tensor:
    """As `_lstm`; upper layers and the head read both directions."""
    if name == "fc.bias":
        return t
    if name == "fc.weight":
        return torch.cat([t[:, 0:6], t[:, 10:16]], 1)
    gates = torch.cat([t[0:6], t[10:16], t[20:26], t[30:36]])
    if "weight_hh" in name:
        return gates[:, :6]
    if "weight_ih_l1" in name:
        return torch.cat([gates[:, 0:6], gates[:, 10:16]], 1)
    return gates


class Joined(nn.Module):
    """Two convolutions side by side, one BatchNorm over both."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, first, 3), nn.Conv2d(3, second, 3)
        self.norm = nn.BatchNorm2d(first + second)
        self.head = nn.Linear(first + second, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.first(x), self.second(x)], 1)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def _joined(name: str, t: Tensor) -> Tensor:
    if name.startswith("norm"):
        return t if t.dim() == 0 else t[[0, 1, 2, 8, 9, 10, 11]]
    if name == "head.weight":
        return t[:, [0, 1, 2, 8, 9, 10, 11]]
    return {"first": t[:3], "second": t[:4], "head": t}[name.partition(".")[0]]


def _images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))


_TRANSFORMER = {"width:": 8, "heads:": 2, "width:blocks.0.mlp": 32, "width:blocks.1.mlp": 32}
PAIRS = {
    "mlp": Pair(lambda: nets.mlp((12,), 5, hidden=(16, 12)), lambda: nets.mlp((12,), 5, hidden=(5, 7)), _mlp,
                _floats(12), {"width:body.0": 5, "width:body.2": 7}),
    "mlp-dropout": Pair(lambda: nets.mlp((12,), 5, hidden=(16,), dropout=0.5),
                        lambda: nets.mlp((12,), 5, hidden=(6,), dropout=0.5),
                        lambda name, t: t if name == "head.bias" else t[:, :6] if name == "head.weight" else t[:6],
                        _floats(12), {"width:": 6}),
    "resnet": Pair(lambda: nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8),
                   lambda: nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=4), _resnet, _images,
                   {"width:": 4, "width:stages.1": 8}),
    "dwsep": Pair(lambda: nets.dwsep((3, 8, 8), 5, stem=8, channels=(16, 24), strides=(1, 2)),
                  lambda: nets.dwsep((3, 8, 8), 5, stem=4, channels=(8, 12), strides=(1, 2)), _dwsep, _images,
                  {"width:stem": 4, "width:blocks": 8, "width:blocks.1": 12}),
    "vit": Pair(lambda: nets.vit((3, 8, 8), 5, dim=16, depth=2, heads=4),
                lambda: nets.vit((3, 8, 8), 5, dim=8, depth=2, heads=2), _vit, _images, _TRANSFORMER),
    "gpt": Pair(lambda: nets.gpt((10,), 20, dim=16, depth=2, heads=4),
                lambda: nets.gpt((10,), 20, dim=8, depth=2, heads=2), _gpt,
                lambda: torch.randint(20, (4, 10), generator=torch.Generator().manual_seed(0)), _TRANSFORMER),
    "lstm": Pair(lambda: nets.lstm((7, 6), 5, hidden=10), lambda: nets.lstm((7, 6), 5, hidden=6), _lstm,
                 _floats(7, 6), {"width:": 6}),
    "bilstm": Pair(lambda: nets.lstm((7, 6), 5, hidden=10, layers=2, bidirectional=True),
                   lambda: nets.lstm((7, 6), 5, hidden=6, layers=2, bidirectional=True), _bilstm, _floats(7, 6),
                   {"width:": 6}),
    "joined": Pair(lambda: Joined(8, 8), lambda: Joined(3, 4), _joined, _images,
                   {"width:first": 3, "width:second": 4}),
}  # fmt: skip
