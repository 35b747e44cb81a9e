"""Hand-written networks of the zoo: one way of tying axes each, in the form the field writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the image."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = self.fc2(F.relu(self.fc1(scale)))
        return x * F.hardsigmoid(scale)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, squeeze-excite, project 1x1, and a shortcut where the shape is kept."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, *, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(inplace=True),
        )
        self.se = SqueezeExcite(hidden, max(4, hidden // 4))
        self.project = nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H / stride, W / stride]."""
        out: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """Inverted residuals with squeeze-excite and hardswish (MobileNetV3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
        )
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 16), InvertedResidual(8, 12, 24, stride=2), InvertedResidual(12, 12, 24)
        )
        self.classifier = nn.Sequential(nn.Linear(12, 20), nn.Hardswish(inplace=True), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = self.blocks(self.stem(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3, 1x1 with GroupNorm and an identity shortcut."""

    def __init__(self, channels: int, hidden: int, *, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.GroupNorm(groups, hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm3 = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = F.relu(self.norm2(self.conv2(out)))
        return F.relu(x + self.norm3(self.conv3(out)))


class ResNeXt(nn.Module):
    """Grouped convolutions and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = ResNeXtBlock(16, 16, groups=8)
        self.block2 = ResNeXtBlock(16, 32, groups=8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = F.max_pool2d(self.block1(F.relu(self.stem(x))), 2)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(self.block2(x), 1).flatten(1))
        return logits


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution; the result is appended to the input's channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + growth, H, W]."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class DenseNet(nn.Module):
    """Concatenations, with BatchNorm over channels of several origins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.dense = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2))
        self.dense2 = DenseLayer(8, 4)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = self.dense2(self.transition(self.dense(self.stem(x))))
        logits: Tensor = self.head(F.relu(self.norm(x)).mean((2, 3)))
        return logits


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Down and up again, once by transposed convolution and once by interpolation, with concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _double_conv(3, 6)
        self.down2 = _double_conv(6, 8)
        self.bottom = _double_conv(8, 10)
        self.up2 = nn.ConvTranspose2d(10, 8, 2, stride=2)
        self.merge2 = _double_conv(16, 8)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(8, 6, 1))
        self.merge1 = _double_conv(12, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4, H, W]."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        out = self.up2(self.bottom(F.max_pool2d(second, 2)))
        out = self.merge2(torch.cat([out, second], dim=1))
        out = self.merge1(torch.cat([self.up1(out), first], dim=1))
        logits: Tensor = self.head(out)
        return logits


class BiLSTM(nn.Module):
    """Two bidirectional layers; the mean over time is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 8)
        self.rnn = nn.LSTM(8, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 6] -> [N, 5]."""
        out, _ = self.rnn(torch.tanh(self.inp(x)))
        logits: Tensor = self.head(out.mean(1))
        return logits


class GRU(nn.Module):
    """Embedded tokens, one GRU layer, the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 10)
        self.rnn = nn.GRU(10, 12, batch_first=True)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 [N, T] -> [N, 5]."""
        out, _ = self.rnn(self.embedding(tokens))
        logits: Tensor = self.head(out[:, -1])
        return logits


class Encoder(nn.Module):
    """PyTorch's own encoder, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 6] -> [N, 5]."""
        logits: Tensor = self.head(self.encoder(self.inp(x)).mean(1))
        return logits


class Shared(nn.Module):
    """A module used twice, a tied embedding, weight norm, einsum and a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.shared = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        self.normed = weight_norm(nn.Linear(12, 18))
        self.mix = nn.Parameter(torch.randn(9, 12) / 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 [N, T] -> [N, T, 20]."""
        x = self.embedding(tokens)
        x = x + self.shared(x)
        x = x + self.shared(x)
        gated = F.glu(self.normed(x), dim=-1)
        x = x + torch.einsum("bti,io->bto", gated, self.mix)
        logits: Tensor = x @ self.embedding.weight.t()
        return logits


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, channels-last LayerNorm, pointwise MLP, layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(out)))
        result: Tensor = x + out.permute(0, 3, 1, 2)
        return result


class ConvNeXt(nn.Module):
    """Two blocks with a normalised downsampling between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.block1 = ConvNeXtBlock(8)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Conv2d(8, 12, 2, stride=2)
        self.block2 = ConvNeXtBlock(12)
        self.head = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = self.block1(self.stem(x))
        x = self.down(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        logits: Tensor = self.head(self.block2(x).mean((-2, -1)))
        return logits


class MixerBlock(nn.Module):
    """An MLP over tokens, then one over channels."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, 24), nn.GELU(), nn.Linear(24, tokens))
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> the same."""
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channel_mlp(self.norm2(x))
        return mixed


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(4, 16), MixerBlock(4, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class ShuffleBlock(nn.Module):
    """Half of the channels pass, the other half goes through a branch; then the channels are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        passed, worked = x.chunk(2, dim=1)
        out = torch.cat((passed, self.branch(worked)), dim=1)
        batch, channels, height, width = out.shape
        out = out.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return out.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """Channel split and shuffle (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(ShuffleBlock(16), ShuffleBlock(16))
        self.last = nn.Sequential(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        logits: Tensor = self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class GatedBlock(nn.Module):
    """Causal dilated convolutions: tanh times sigmoid, then a 1x1 convolution back and a shortcut."""

    def __init__(self, channels: int, hidden: int, *, dilation: int) -> None:
        super().__init__()
        self.padding = 2 * dilation
        self.filter = nn.Conv1d(channels, hidden, 3, dilation=dilation)
        self.gate = nn.Conv1d(channels, hidden, 3, dilation=dilation)
        self.out = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T] -> the same."""
        padded = F.pad(x, (self.padding, 0))
        mixed: Tensor = x + self.out(torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded)))
        return mixed


class TCN(nn.Module):
    """Gated temporal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv1d(4, 8, 1)
        self.blocks = nn.Sequential(GatedBlock(8, 12, dilation=1), GatedBlock(8, 12, dilation=2))
        self.head = nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, T] -> [N, 5], from the last step."""
        out: Tensor = self.head(F.relu(self.blocks(self.inp(x))))
        return out[:, :, -1]
