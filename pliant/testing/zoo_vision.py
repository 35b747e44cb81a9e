"""Hand-written vision networks of the zoo, tiny, each with the structure of its family."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.testing.entry import Entry, draws, entry, floats


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the image's size at stride 1, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class VGG(nn.Module):
    """Plain convolutions, then the flattened image into two hidden layers (VGG)."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), pool, conv_bn(8, 16), conv_bn(16, 16), pool)
        self.classifier = nn.Sequential(
            nn.Linear(16 * 4, 24), nn.ReLU(), nn.Dropout(0.0), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


class Fire(nn.Module):
    """Squeeze to few channels, expand by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 2 * expand, H, W]."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Fire modules and a convolution as classifier (SqueezeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.fires = nn.Sequential(Fire(16, 8, 12), Fire(24, 8, 16))
        self.classifier = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = F.max_pool2d(F.relu(self.stem(x)), 2, ceil_mode=True)
        return F.relu(self.classifier(self.fires(x))).mean((2, 3))


class Inception(nn.Module):
    """Four parallel branches whose results are strung together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.point = conv_bn(channels, 8, 1)
        self.three = nn.Sequential(conv_bn(channels, 8, 1), conv_bn(8, 12))
        self.five = nn.Sequential(conv_bn(channels, 6, 1), conv_bn(6, 8, 5))
        self.pooled = conv_bn(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 36, H, W]."""
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.point(x), self.three(x), self.five(x), pooled], dim=1)


class GoogLeNet(nn.Module):
    """Inception blocks in a row (GoogLeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, stride=2)
        self.blocks = nn.Sequential(Inception(16), Inception(36))
        self.fc = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1)).squeeze(-1).squeeze(-1))
        return logits


class SEBottleneck(nn.Module):
    """1x1, 3x3, 1x1 with channel attention by a two-layer network (SE-ResNet)."""

    def __init__(self, channels: int, hidden: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(channels, hidden, 1), conv_bn(hidden, hidden, stride=stride)
        self.conv3, self.bn3 = nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        self.squeeze, self.excite = nn.Linear(out_channels, 8), nn.Linear(8, out_channels)
        same = stride == 1 and channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, out_channels, H / stride, W / stride]."""
        out = self.bn3(self.conv3(self.conv2(self.conv1(x))))
        weight = torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean((2, 3))))))
        out = out * weight[:, :, None, None]
        out += self.shortcut(x)
        return F.relu(out)


class SEResNet(nn.Module):
    """Bottlenecks with squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.layer1 = nn.Sequential(SEBottleneck(16, 8, 32), SEBottleneck(32, 8, 32))
        self.layer2 = nn.Sequential(SEBottleneck(32, 12, 48, stride=2), SEBottleneck(48, 12, 48))
        self.fc = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        logits: Tensor = self.fc(self.layer2(self.layer1(self.stem(x))).mean([2, 3]))
        return logits


class PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return x + out


class Hourglass(nn.Module):
    """Recursive down and up with a skip at every scale (stacked hourglass)."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.skip, self.down = PreActivation(channels, 8), PreActivation(channels, 8)
        self.inner = Hourglass(depth - 1, channels) if depth > 1 else PreActivation(channels, 8)
        self.up = PreActivation(channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        low = self.up(self.inner(self.down(F.max_pool2d(x, 2))))
        out: Tensor = F.interpolate(low, scale_factor=2, mode="nearest") + self.skip(x)
        return out


class HourglassNet(nn.Module):
    """Two hourglasses with heat maps between them, which are fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.stacks = nn.ModuleList([Hourglass(2, 12), Hourglass(2, 12)])
        self.heads = nn.ModuleList([nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)])
        self.back = nn.Conv2d(4, 12, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> heat maps [N, 4, H, W] of each stack."""
        x, maps = self.stem(x), []
        for i, (stack, head) in enumerate(zip(self.stacks, self.heads)):
            out = stack(x)
            maps.append(head(out))
            x = x + out + self.back(maps[-1]) if i == 0 else x
        return maps


class FPN(nn.Module):
    """A pyramid with lateral connections and heads shared over its levels (RetinaNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 8, stride=2), conv_bn(8, 12, stride=2), conv_bn(12, 16, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (8, 12, 16)])
        self.smooth = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)])
        self.tower = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(12, 2 * 5, 3, padding=1), nn.Conv2d(12, 2 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[N, 3, H, W] -> scores [N, anchors, 5] and boxes [N, anchors, 4]."""
        levels = []
        for stage, lateral in zip(self.stages, self.lateral):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
        found = [self.tower(smooth(level)) for smooth, level in zip(self.smooth, levels)]
        n = x.shape[0]
        scores = [self.classes(f).view(n, 2, 5, -1).permute(0, 3, 1, 2).reshape(n, -1, 5) for f in found]
        boxes = [self.boxes(f).view(n, 2, 4, -1).permute(0, 3, 1, 2).reshape(n, -1, 4) for f in found]
        return {"scores": torch.cat(scores, 1), "boxes": torch.cat(boxes, 1)}


class DeepLab(nn.Module):
    """Dilated convolutions side by side and an image-wide branch (DeepLabV3)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_bn(3, 12, stride=2), conv_bn(12, 16))
        rates = [nn.Conv2d(16, 8, 3, padding=rate, dilation=rate, bias=False) for rate in (1, 2, 3)]
        self.rates = nn.ModuleList(rates)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU())
        self.project, self.head = conv_bn(32, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[N, 3, H, W] -> {"out": [N, 5, H, W]}."""
        size, x = x.shape[-2:], self.backbone(x)
        wide = F.interpolate(self.image(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat([*(F.relu(rate(x)) for rate in self.rates), wide], 1)
        out = self.head(self.project(joined))
        return {"out": F.interpolate(out, size=size, mode="bilinear", align_corners=False)}


class SuperResolution(nn.Module):
    """PReLU blocks and a pixel shuffle; the enlarged input is added (ESPCN, EDSR)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(12))
        self.body = nn.Sequential(PreActivation(12, 16), PreActivation(12, 16))
        self.up, self.act, self.tail = nn.Conv2d(12, 8 * 4, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 3, 2 H, 2 W]."""
        out = self.act(F.pixel_shuffle(self.up(self.body(self.head(x))), 2))
        image: Tensor = self.tail(out) + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return image


class GAN(nn.Module):
    """A generator by transposed convolutions and a critic with spectral norm, run one after the other (DCGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(10, 16 * 4)
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(16, 12, 4, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(True),
            nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 12, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(12 * 4, 1),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 10] -> image [N, 3, 8, 8] and its score [N, 1]."""
        image = self.generator(self.start(noise).view(-1, 16, 2, 2))
        return image, self.critic(image)


class VAE(nn.Module):
    """Mean and log-variance from one layer, split in two (variational autoencoder, its mean path)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_bn(3, 8, stride=2), conv_bn(8, 12, stride=2), nn.Flatten())
        self.moments, self.expand = nn.Linear(12 * 4, 2 * 6), nn.Linear(6, 12 * 4)
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), conv_bn(12, 8), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3, 8, 8] -> reconstruction, mean [N, 6], log-variance [N, 6]."""
        mean, variance = self.moments(self.encoder(x)).chunk(2, dim=-1)
        code = mean + torch.exp(0.5 * variance) * 0.1
        image = self.decoder(F.relu(self.expand(code)).view(-1, 12, 2, 2))
        return torch.sigmoid(image), mean, variance


class FlowUpdate(nn.Module):
    """A convolutional GRU and two heads, applied again and again with the same weights."""

    def __init__(self, hidden: int, context: int) -> None:
        super().__init__()
        wide = hidden + context + 10
        self.z, self.r = nn.Conv2d(wide, hidden, 3, padding=1), nn.Conv2d(wide, hidden, 3, padding=1)
        self.q = nn.Conv2d(wide, hidden, 3, padding=1)
        self.motion = nn.Conv2d(2 + 9, 8, 3, padding=1)
        self.flow = nn.Sequential(nn.Conv2d(hidden, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 3, padding=1))

    def forward(self, h: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """New hidden state [N, hidden, H, W] and the change of the flow [N, 2, H, W]."""
        motion = F.relu(self.motion(torch.cat([correlation, flow], 1)))
        x = torch.cat([context, motion, flow], 1)
        joined = torch.cat([h, x], 1)
        z, r = torch.sigmoid(self.z(joined)), torch.sigmoid(self.r(joined))
        h = (1 - z) * h + z * torch.tanh(self.q(torch.cat([r * h, x], 1)))
        return h, self.flow(h)


class RAFT(nn.Module):
    """Features of two frames, all-pairs correlation, iterated updates by a shared recurrent cell (RAFT)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 12, stride=2), nn.Conv2d(12, 16, 1))
        self.context = nn.Sequential(conv_bn(3, 12, stride=2), nn.Conv2d(12, 12 + 8, 1))
        self.update = FlowUpdate(12, 8)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two frames [N, 3, 6, 6] -> flow [N, 2, 3, 3]."""
        one, two = self.features(first), self.features(second)
        n, channels, height, width = one.shape
        scores = torch.matmul(one.view(n, channels, -1).transpose(1, 2), two.view(n, channels, -1)) / channels**0.5
        correlation = scores.view(n, height, width, -1).permute(0, 3, 1, 2)
        hidden, context = torch.split(self.context(first), [12, 8], dim=1)
        h, context = torch.tanh(hidden), torch.relu(context)
        flow = torch.zeros(n, 2, height, width)
        for _ in range(2):
            h, change = self.update(h, context, correlation, flow.detach())
            flow = flow + change
        return flow


class PointNet(nn.Module):
    """A network shared over points, a learnt transform of features, a maximum over the points (PointNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.ReLU())
        self.transform = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12 * 12))
        self.wide = nn.Sequential(nn.Conv1d(12, 24, 1), nn.BatchNorm1d(24), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, points: Tensor) -> Tensor:
        """[N, 3, points] -> [N, 5]."""
        x = self.local(points)
        matrix = self.transform(x.max(dim=2).values).view(-1, 12, 12) + torch.eye(12)
        x = torch.bmm(x.transpose(1, 2), matrix).transpose(1, 2)
        logits: Tensor = self.head(torch.max(self.wide(x), 2)[0])
        return logits


class Video(nn.Module):
    """3-D convolutions split into space and time (R(2+1)D)."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time = nn.Conv3d(12, 12, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(12), nn.BatchNorm3d(12)
        self.again = nn.Conv3d(12, 12, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, T, H, W] -> [N, 5]."""
        x = F.relu(self.norm2(self.time(F.relu(self.norm1(self.space(x))))))
        x = F.max_pool3d(x + self.again(x), (1, 2, 2))
        logits: Tensor = self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))
        return logits


ENTRIES: list[Entry] = [
    # four convolutions, two hidden layers; the last convolution's channels are blocks of the flattened image
    entry("vgg", VGG, floats(3, 8, 8), "conv batchnorm inplace", groups={"width": [8, 8, 16, 16, 16, 24]}),
    # stem, and for each fire module its squeeze and two expansions
    entry("squeezenet", SqueezeNet, floats(3, 16, 16), "conv cat", groups={"width": [8, 8, 12, 12, 16, 16, 16]}),
    # stem, and for each block 8, 8 to 12, 6 to 8, 8
    entry("googlenet", GoogLeNet, floats(3, 8, 8), "conv batchnorm cat inplace",
          groups={"width": [6, 6, *[8] * 8, 12, 12, 16]}),
    # stem 16, streams 32 and 48, two inner widths and a squeeze of 8 in each of the four blocks
    entry("seresnet", SEResNet, floats(3, 8, 8), "conv batchnorm squeeze inplace depth",
          groups={"width": [*[8] * 8, *[12] * 4, 16, 32, 48], "depth": [2]}),
    # one stream of 12, fourteen blocks with 8 inside; the way down and up can be left out at both scales of both stacks
    entry("hourglass", HourglassNet, floats(3, 8, 8), "conv batchnorm upsample dense depth",
          groups={"width": [*[8] * 14, 12], "depth": [18]}),
    # stages 8, 12, 16; the laterals are summed (16), the smoothed levels share the tower (16), whose norm has 3 groups
    entry("fpn", FPN, floats(3, 16, 16), "conv batchnorm groupnorm upsample cat shared detection",
          groups={"width": [3, 8, 12, 16, 16, 16]}),
    entry("deeplab", DeepLab, floats(3, 8, 8), "conv batchnorm cat upsample dense",
          groups={"width": [8, 8, 8, 8, 12, 12, 16]}),
    # stream 12, two blocks of 16, eight channels of 2 x 2 pixels
    entry("superresolution", SuperResolution, floats(3, 6, 6), "conv batchnorm pixelshuffle dense depth",
          groups={"width": [8, 12, 16, 16], "depth": [2]}),
    # the image between generator and critic is an output
    entry("gan", GAN, floats(10), "conv transposed batchnorm spectralnorm", groups={"width": [8, 12, 12, 16]}),
    # mean and log-variance are outputs
    entry("vae", VAE, floats(3, 8, 8), "conv batchnorm upsample dense", groups={"width": [8, 8, 12, 12]}),
    # features 12 and 16, context stem 12 and context 8, hidden 12 (all gates), motion 8, flow head 12; both
    # updates of the hidden state can be left out, and the second change of the flow (the first is added to zeros)
    entry("raft", RAFT, draws((3, 6, 6), (3, 6, 6)), "conv batchnorm shared recurrent dense",
          groups={"width": [8, 8, 12, 12, 12, 12, 16], "depth": [3]}),
    # the learnt transform is added to an identity matrix, which ties the local features to their places
    entry("pointnet", PointNet, floats(3, 9), "conv batchnorm", groups={"width": [16, 16, 24]}),
    entry("video", Video, floats(3, 4, 6, 6), "conv batchnorm depth", groups={"width": [12, 12], "depth": [1]}),
]  # fmt: skip
