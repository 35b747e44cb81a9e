"""Hand-written networks of the zoo for sequences and time series, each with the structure of its family."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.testing.entry import Entry, draws, entry, floats, tokens


class Mamba(nn.Module):
    """A selective state space: convolution, input-dependent step, scan over time, gate (Mamba)."""

    def __init__(self, dim: int = 16, inner: int = 24, states: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.norm, self.inp = nn.LayerNorm(dim), nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)
        self.x, self.dt = nn.Linear(inner, rank + 2 * states, bias=False), nn.Linear(rank, inner)
        self.a = nn.Parameter(torch.rand(inner, states).log())
        self.d, self.out = nn.Parameter(torch.ones(inner)), nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L, dim] -> the same."""
        x, gate = self.inp(self.norm(tokens)).chunk(2, dim=-1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : tokens.shape[1]]).transpose(1, 2)
        step, b, c = torch.split(self.x(x), [self.rank, self.states, self.states], dim=-1)
        step = F.softplus(self.dt(step))
        decay = torch.exp(step.unsqueeze(-1) * -torch.exp(self.a))
        drive = (step * x).unsqueeze(-1) * b.unsqueeze(2)
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * c[:, t].unsqueeze(1)).sum(-1))
        y = torch.stack(outputs, dim=1) + self.d * x
        mixed: Tensor = tokens + self.out(y * F.silu(gate))
        return mixed


class StateSpace(nn.Module):
    """Two Mamba layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(20, 16), nn.Sequential(Mamba(), Mamba())
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] -> [N, L, 20]."""
        logits: Tensor = self.head(self.norm(self.layers(self.embed(tokens))))
        return logits


class Seq2Seq(nn.Module):
    """A bidirectional encoder, a decoder cell by cell with additive attention (Bahdanau)."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(20, 12), nn.Embedding(20, 12)
        self.encoder = nn.GRU(12, 8, batch_first=True, bidirectional=True)
        self.cell, self.bridge = nn.GRUCell(12 + 16, 16), nn.Linear(16, 16)
        self.query, self.key, self.score = nn.Linear(16, 10), nn.Linear(16, 10), nn.Linear(10, 1)
        self.head = nn.Linear(16, 20)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Tokens [N, 5] and [N, 3] -> logits [N, 3, 20]."""
        memory, last = self.encoder(self.source(source))
        h, out = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1))), []
        for t in range(target.shape[1]):
            scores = self.score(torch.tanh(self.query(h).unsqueeze(1) + self.key(memory)))
            context = (F.softmax(scores, dim=1) * memory).sum(1)
            h = self.cell(torch.cat([self.target(target[:, t]), context], -1), h)
            out.append(self.head(h))
        return torch.stack(out, 1)


class WaveNet(nn.Module):
    """Gated causal convolutions with a skip connection from every layer (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv1d(4, 12, 1)
        self.gates = nn.ModuleList([nn.Conv1d(12, 2 * 8, 2, dilation=2**i) for i in range(3)])
        self.back = nn.ModuleList([nn.Conv1d(8, 12, 1) for _ in range(3)])
        self.skip = nn.ModuleList([nn.Conv1d(8, 16, 1) for _ in range(3)])
        self.out1, self.out2 = nn.Conv1d(16, 12, 1), nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, T] -> [N, 5, T]."""
        x, total = self.inp(x), torch.zeros(())
        for i, (gate, back, skip) in enumerate(zip(self.gates, self.back, self.skip)):
            out = F.glu(gate(F.pad(x, (2**i, 0))), dim=1)
            x, total = x + back(out), total + skip(out)
        logits: Tensor = self.out2(F.relu(self.out1(F.relu(total))))
        return logits


class ConvLSTM(nn.Module):
    """A recurrent cell whose gates are one convolution (ConvLSTM)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(1 + 8, 4 * 8, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """[N, T, 1, H, W] -> the next frame [N, 1, H, W]."""
        n, _, _, height, width = frames.shape
        h = c = frames.new_zeros(n, 8, height, width)
        for t in range(frames.shape[1]):
            i, f, o, g = torch.split(self.gates(torch.cat([frames[:, t], h], dim=1)), 8, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        frame: Tensor = self.head(h)
        return frame


class TextCNN(nn.Module):
    """Convolutions of several widths over words, each with its maximum (Kim)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.convs = nn.ModuleList([nn.Conv2d(1, 8, (k, 12)) for k in (2, 3, 4)])
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] -> [N, 5]."""
        x = self.embed(tokens).unsqueeze(1)
        found = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        logits: Tensor = self.head(torch.cat([F.max_pool1d(f, f.size(2)).squeeze(2) for f in found], 1))
        return logits


class NBeats(nn.Module):
    """Stacked blocks that explain a part of the past and forecast a part of the future (N-BEATS)."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([
            nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()) for _ in range(3)
        ])  # fmt: skip
        self.past = nn.ModuleList([nn.Linear(16, 12) for _ in range(3)])
        self.future = nn.ModuleList([nn.Linear(16, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, 12] -> [N, 4]."""
        forecast = torch.zeros(x.shape[0], 4)
        for body, past, future in zip(self.bodies, self.past, self.future):
            h = body(x)
            x, forecast = x - past(h), forecast + future(h)
        return forecast


ENTRIES: list[Entry] = [
    # stream 16; in each layer 24 inner channels, 4 states, a step of rank 3
    entry("statespace", StateSpace, tokens(6, 20), "ssm conv depthwise layernorm tokens recurrent depth",
          groups={"width": [3, 3, 4, 4, 16, 24, 24], "depth": [2]}),
    entry("seq2seq", Seq2Seq, draws(tokens(5, 20), tokens(3, 20)), "rnn bidirectional attention tokens",
          groups={"width": [8, 10, 12, 12, 16]}),
    # stream 12, three gated layers of 8, skips 16, output 12; the last layer gives nothing to the stream
    entry("wavenet", WaveNet, floats(4, 9), "conv gated depth",
          groups={"width": [8, 8, 8, 12, 12, 16], "depth": [2]}),
    entry("convlstm", ConvLSTM, floats(3, 1, 6, 6), "conv recurrent dense", groups={"width": [8]}),
    # a word's vector is an axis of the image that the kernels cover
    entry("textcnn", TextCNN, tokens(7, 20), "conv cat tokens", groups={"width": [8, 8, 8]}),
    # of the backward residuals the last one is not used
    entry("nbeats", NBeats, floats(12), "linear timeseries depth", groups={"width": [16] * 6, "depth": [2]}),
]  # fmt: skip
