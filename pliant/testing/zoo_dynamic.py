"""Networks whose way depends on the data, written as users write them: images. `DYNAMIC` holds all of them.

Each factory gives a network in evaluation mode whose decisions fall both ways on normal inputs.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Factory = Callable[[], nn.Module]


def conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        inner = outputs // 2
        self.body = nn.Sequential(conv(inputs, inner, kernel=1), conv(inner, inner, stride, groups),
                                  nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        return F.relu(self.body(x) + self.shortcut(x))


class Depthwise(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, inputs, stride, inputs), conv(inputs, outputs, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        out: Tensor = self.body(x)
        return out


class InternalClassifier(nn.Module):
    """Pooling and a linear layer, after Kaya et al., "Shallow-Deep Networks" (2019)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.max_pool, self.avg_pool = nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(2)
        self.alpha = nn.Parameter(torch.rand(1))
        self.linear = nn.Linear(channels * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, classes]."""
        mixed = self.alpha * self.max_pool(x) + (1 - self.alpha) * self.avg_pool(x)
        out: Tensor = self.linear(mixed.flatten(1)) * 4
        return out


class SDN(nn.Module):
    """A Shallow-Deep network: leaves at the first internal classifier that is confident."""

    def __init__(self, layers: list[nn.Module], channels: list[int], exits: list[bool], threshold: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.exits = exits
        self.heads = nn.ModuleList(InternalClassifier(c, 10) for c, leave in zip(channels, exits) if leave)
        self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
        self.confidence_threshold = threshold

    def forward(self, x: Tensor) -> tuple[Tensor, int, bool]:
        """Logits, number of the exit, whether it left early."""
        outputs = []
        confidences = []
        output_id = 0
        for layer, leave in zip(self.layers, self.exits):
            x = layer(x)
            if leave:
                output = self.heads[output_id](x)
                outputs.append(output)
                confidence = F.softmax(output, dim=1).max()
                confidences.append(confidence.item())
                if confidence >= self.confidence_threshold:
                    return output, output_id, True
                output_id += 1
        output = self.end(x)
        outputs.append(output)
        confidences.append(torch.max(F.softmax(output, dim=1)).item())
        max_confidence = max(confidences)
        return output, output_id, max_confidence > 0.9


def sdn_vgg() -> nn.Module:
    """SDN on a VGG."""
    widths = [16, 16, 32, 32, 64, 64, 64]
    layers: list[nn.Module] = []
    inputs = 3
    for number, width in enumerate(widths):
        stage: nn.Module = conv(inputs, width)
        layers.append(nn.Sequential(stage, nn.MaxPool2d(2)) if number in (1, 3, 5) else stage)
        inputs = width
    return SDN(layers, widths, [False, True, False, True, True, True, False], 0.8)


def sdn_resnet() -> nn.Module:
    """SDN on a ResNet."""
    widths = [16, 16, 16, 32, 32, 64, 64]
    layers: list[nn.Module] = [conv(3, 16)]
    for inputs, width in pairwise(widths):
        layers.append(BasicBlock(inputs, width, 1 if inputs == width else 2))
    return SDN(layers, widths, [False, True, True, True, True, True, False], 0.8)


def sdn_wideresnet() -> nn.Module:
    """SDN on a wide ResNet."""
    widths = [16, 64, 64, 128]
    layers: list[nn.Module] = [conv(3, 16)]
    for inputs, width in pairwise(widths):
        layers.append(BasicBlock(inputs, width, 1 if inputs == width else 2))
    return SDN(layers, widths, [False, True, True, False], 0.8)


def sdn_mobilenet() -> nn.Module:
    """SDN on a MobileNet."""
    widths = [16, 32, 32, 64, 64, 64, 128]
    layers: list[nn.Module] = [conv(3, 16)]
    for inputs, width in pairwise(widths):
        layers.append(Depthwise(inputs, width, 1 if inputs == width else 2))
    return SDN(layers, widths, [False, True, True, True, True, True, False], 0.8)


class FeedforwardGate(nn.Module):
    """The gate of a SkipNet: convolution, pooling, two scores (Wang et al., "SkipNet", 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, 2)
        self.fc = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 1, 1]: one or zero."""
        pooled = self.conv(x).mean((2, 3))
        scores = F.softmax(self.fc(pooled) * 20, dim=1)
        return (scores[:, 1] > 0.5).float().view(-1, 1, 1, 1)


class SkipNet(nn.Module):
    """A ResNet whose blocks are skipped by a gate before each of them."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(BasicBlock(16, 16) for _ in range(blocks))
        self.gates = nn.ModuleList(FeedforwardGate(16) for _ in range(blocks))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Logits, blocks that were run."""
        x = self.stem(x)
        executed = 0
        for block, gate in zip(self.blocks, self.gates):
            mask = gate(x)
            if mask.item() == 1:
                x = block(x)
                executed += 1
        return self.head(x.mean((2, 3))), executed


class SkipNetRNN(nn.Module):
    """A SkipNet whose gates share an LSTM."""

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(BasicBlock(16, 16) for _ in range(blocks))
        self.proj, self.rnn, self.prob = nn.Linear(16, 10), nn.LSTM(10, 10), nn.Linear(10, 1)
        self.head = nn.Linear(16, 10)

    def init_hidden(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros(1, batch, 10), torch.zeros(1, batch, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Logits, one per block that was run."""
        x = self.stem(x)
        hidden = self.init_hidden(x.size(0))
        taken = []
        for block in self.blocks:
            feature = self.proj(F.adaptive_avg_pool2d(x, 1).flatten(1))
            out, hidden = self.rnn(feature.unsqueeze(0), hidden)
            prob = torch.sigmoid(self.prob(out.squeeze(0)) * 30)
            keep = bool(prob > 0.5)
            x = block(x) if keep else x
            taken.append(1 if keep else 0)
        return self.head(x.mean((2, 3))), taken


class BlockDrop(nn.Module):
    """A policy network decides about all blocks first (Wu et al., "BlockDrop", 2018)."""

    def __init__(self, blocks: int = 8) -> None:
        super().__init__()
        self.agent = nn.Sequential(conv(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, blocks))
        self.stem = conv(3, 16)
        self.blocks = nn.ModuleList(BasicBlock(16, 16) for _ in range(blocks))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 10]."""
        scores = self.agent(x)
        policy = (torch.sigmoid((scores - scores.mean()) * 10) > 0.5).long()
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if policy[0, i] == 0:
                continue
            x = block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class EarlyExitCNN(nn.Module):
    """Leaves by entropy; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({"one": conv(3, 16, 2), "two": conv(16, 32, 2), "three": conv(32, 64, 2)})
        self.heads = nn.ModuleDict({"one": nn.Linear(16, 10), "two": nn.Linear(32, 10), "three": nn.Linear(64, 10)})
        self.limit = 1.9

    def entropy(self, logits: Tensor) -> Tensor:
        """Of the softmax."""
        p = logits.softmax(-1)
        return -(p * p.clamp(min=1e-9).log()).sum(-1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Logits, where they come from, what was seen on the way."""
        seen: dict[str, Any] = {}
        logits = None
        for name, stage in self.stages.items():
            x = stage(x)
            logits = self.heads[name](x.mean((2, 3))) * 6
            seen[name] = self.entropy(logits)
            if seen[name] < self.limit:
                break
        return {"logits": logits, "exit": name, "entropies": seen, "stages": len(seen)}


class Cascade(nn.Module):
    """A small network, and a large one where the small one is not sure."""

    def __init__(self) -> None:
        super().__init__()
        self.little = nn.Sequential(conv(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        self.big = nn.Sequential(conv(3, 32), BasicBlock(32, 32), BasicBlock(32, 64, 2), nn.AdaptiveAvgPool2d(1),
                                 nn.Flatten(), nn.Linear(64, 10))  # fmt: skip

    def confident(self, logits: Tensor) -> bool:
        """Whether the first two are far apart."""
        top = torch.topk(logits.softmax(-1), 2).values[0]
        if top[0] - top[1] > 0.006:  # noqa: SIM103  # users write it so
            return True
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        """Logits and who gave them."""
        logits = self.little(x)
        if self.confident(logits):
            return logits, "little"
        return self.big(x), "big"


class Pyramid(nn.Module):
    """Goes down while there is something to see, and up again over what was collected."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.down = nn.ModuleList(conv(8, 8, 2) for _ in range(depth))
        self.up = nn.ModuleList(conv(8, 8) for _ in range(depth))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """A map [N, 4, H, W] and the depth."""
        feats = [self.stem(x)]
        for down in self.down:
            finer = feats[-1]
            if finer.shape[-1] > 2 and finer.std() > 0.31:
                feats.append(down(finer))
            else:
                feats[-1] = finer * 1.5
                break
        out = feats[-1]
        for up, skip in zip(self.up, reversed(feats[:-1])):
            out = up(F.interpolate(out, size=skip.shape[-2:], mode="nearest")) + skip
        return self.head(out), len(feats)


class SkipBlock(nn.Module):
    """Decides inside of itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, 1)
        self.body = BasicBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        pooled = x.mean((2, 3))
        centred = pooled - pooled.mean()
        if self.gate(centred).item() * 50 > 0:
            out: Tensor = self.body(x)
            if out.mean() > x.mean() * 1.1:
                out = out * 0.5
            return out
        return x


class NestedSkip(nn.Module):
    """Blocks that decide, inside nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 2)
        self.blocks = nn.Sequential(*(SkipBlock(16) for _ in range(5)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 10]."""
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class RegionZoom(nn.Module):
    """Looks again at the quarter it finds most interesting, at most three times."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(conv(3, 16, 2), conv(16, 16, 2))
        self.score, self.head = nn.Conv2d(16, 1, 1), nn.Linear(16, 10)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Logits and the quarters looked at."""
        quarters: list[int] = []
        feature = torch.zeros(x.shape[0], 16)
        for _ in range(3):
            seen = self.look(x)
            feature = feature + seen.mean((2, 3))
            heat = F.adaptive_avg_pool2d(self.score(seen), 2).flatten()
            best = int(heat.argmax())
            quarters.append(best)
            feature = torch.tanh(self.experts[best](feature))
            if (heat.max() - heat.min()).item() < 0.05:
                break
            rolled = torch.stack([x, x.flip(-1), x.flip(-2), x.flip(-1).flip(-2)])
            x = rolled[best] * 0.9
        return {"logits": self.head(feature), "quarters": quarters}


def image(generator: torch.Generator) -> Tensor:
    """One row: [1, 3, 32, 32]."""
    scale = 0.3 + 1.7 * torch.rand((), generator=generator)
    return torch.randn(1, 3, 32, 32, generator=generator) * scale


IMAGES: dict[str, Factory] = {
    "sdn_vgg": sdn_vgg, "sdn_resnet": sdn_resnet, "sdn_wideresnet": sdn_wideresnet, "sdn_mobilenet": sdn_mobilenet,
    "skipnet_fc": lambda: SkipNet(8), "skipnet_rnn": SkipNetRNN, "blockdrop": BlockDrop, "early_exit": EarlyExitCNN,
    "cascade": Cascade, "pyramid": Pyramid, "nested_skip": NestedSkip, "region_zoom": RegionZoom,
}  # fmt: skip
