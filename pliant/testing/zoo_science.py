"""Hand-written networks of the zoo for graphs, spikes, physics and tables, each with the structure of its family."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.testing.entry import Entry, draws, entry, floats, tokens


class GCN(nn.Module):
    """Graph convolutions by a normalised adjacency matrix (Kipf and Welling)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Features [N, nodes, 6] and adjacency [N, nodes, nodes] -> [N, nodes, 5]."""
        adjacency = adjacency.abs() + torch.eye(adjacency.shape[-1])
        scale = adjacency.sum(-1).rsqrt()
        adjacency = scale.unsqueeze(-1) * adjacency * scale.unsqueeze(-2)
        x = F.relu(adjacency @ self.first(x))
        logits: Tensor = self.head(F.relu(adjacency @ self.second(x)))
        return logits


class MessagePassing(nn.Module):
    """Messages along edges, summed where they arrive (GIN and GAT, as PyG runs them)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message = nn.Linear(6, 16), nn.Linear(16, 16)
        self.update = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16))
        self.heads, self.value = 4, nn.Linear(16, 4 * 6)
        self.source, self.target = nn.Parameter(torch.randn(1, 4, 6)), nn.Parameter(torch.randn(1, 4, 6))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features [nodes, 6], edges [edges, 2] (from, to) -> [nodes, 5]."""
        start, end = edges.unbind(1)
        x = self.embed(x)
        summed = torch.zeros_like(x).index_add(0, end, F.relu(self.message(x[start])))
        x = self.update(x + summed)
        value = self.value(x).view(-1, self.heads, 6)
        score = (value * self.source).sum(-1)[start] + (value * self.target).sum(-1)[end]
        weight = F.leaky_relu(score, 0.2).exp()
        places = end.unsqueeze(-1).expand(-1, self.heads)
        total = torch.zeros(x.shape[0], self.heads).scatter_add(0, places, weight)
        weighted = value[start] * (weight / (total[end] + 1e-6)).unsqueeze(-1)
        out = torch.zeros_like(value).index_add(0, end, weighted)
        logits: Tensor = self.head(F.elu(out.flatten(1)))
        return logits


class Spike(torch.autograd.Function):
    """A step with the gradient of a steep sigmoid (surrogate gradient)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """1 where x > 0."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        """The sigmoid's gradient at slope 4."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        s = torch.sigmoid(4 * x)
        return grad * 4 * s * (1 - s)


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons run over time steps with a hard reset (spiking network)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 16), nn.Linear(16, 5)
        self.leak = nn.Parameter(torch.full((16,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5], the mean over four steps."""
        current = self.norm(self.conv(x))
        v1, v2 = torch.zeros_like(current), torch.zeros(x.shape[0], 16)
        total = torch.zeros(x.shape[0], 5)
        for _ in range(4):
            v1 = 0.9 * v1 + current
            s1: Tensor = Spike.apply(v1 - 0.5)  # type: ignore[no-untyped-call]
            v1 = v1 * (1 - s1)
            v2 = self.leak * v2 + self.fc1(s1.flatten(1))
            s2: Tensor = Spike.apply(v2 - 0.2)  # type: ignore[no-untyped-call]
            v2 = v2 - 0.2 * s2
            total = total + self.fc2(s2)
        return total / 4


class KAN(nn.Module):
    """Learnt functions on edges: a sum of radial bumps for each pair of units (Kolmogorov-Arnold network)."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Buffer(torch.linspace(-2, 2, 5))
        sizes = [(6, 16), (16, 12), (12, 5)]
        self.base = nn.ParameterList([nn.Parameter(torch.randn(o, i) * 0.3) for i, o in sizes])
        self.spline = nn.ParameterList([nn.Parameter(torch.randn(o, i, 5) * 0.3) for i, o in sizes])

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6] -> [N, 5]."""
        for base, spline in zip(self.base, self.spline):
            bumps = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
            x = F.linear(F.silu(x), base) + torch.einsum("nig,oig->no", bumps, spline)
        return x


class FourierLayer(nn.Module):
    """A linear map for each low frequency, and one for each point (Fourier neural operator)."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes, self.point = modes, nn.Conv1d(channels, channels, 1)
        self.real = nn.Parameter(torch.randn(channels, channels, modes) * 0.1)
        self.imag = nn.Parameter(torch.randn(channels, channels, modes) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, L] -> the same."""
        frequencies = torch.fft.rfft(x)
        low = frequencies[:, :, : self.modes]
        real = torch.einsum("nil,iol->nol", low.real, self.real) - torch.einsum("nil,iol->nol", low.imag, self.imag)
        imag = torch.einsum("nil,iol->nol", low.real, self.imag) + torch.einsum("nil,iol->nol", low.imag, self.real)
        mixed = F.pad(torch.complex(real, imag), (0, frequencies.shape[-1] - self.modes))
        out: Tensor = F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.point(x))
        return out


class FNO(nn.Module):
    """Fourier layers between two pointwise maps."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.layers = nn.Linear(2, 12), nn.Sequential(FourierLayer(12, 3), FourierLayer(12, 3))
        self.project = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 2] -> [N, L, 1]."""
        out: Tensor = self.project(self.layers(self.lift(x).transpose(1, 2)).transpose(1, 2))
        return out


class DeepONet(nn.Module):
    """A branch for the function, a trunk for the place, and their inner product (DeepONet)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 12))
        self.trunk = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, function: Tensor, places: Tensor) -> Tensor:
        """[N, 10], [N, points, 2] -> [N, points]."""
        return torch.einsum("nk,npk->np", self.branch(function), self.trunk(places)) + self.bias


class Sine(nn.Module):
    """Sine activations, and Fourier features of the place (SIREN, physics-informed networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(torch.randn(2, 8))
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 1)

    def forward(self, place: Tensor) -> Tensor:
        """[N, 2] -> [N, 1]."""
        phase = place @ self.frequencies
        x = torch.cat([phase.sin(), phase.cos()], -1)
        for layer in self.layers:
            x = torch.sin(3.0 * layer(x))
        out: Tensor = self.head(x)
        return out


class NeuralODE(nn.Module):
    """A vector field integrated by Runge-Kutta steps with the same weights (neural ODE)."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.field1, self.field2 = nn.Linear(6, 12), nn.Linear(13, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def _slope(self, x: Tensor, time: float) -> Tensor:
        clock = torch.full_like(x[:, :1], time)
        out: Tensor = self.field2(torch.tanh(self.field1(torch.cat([x, clock], 1))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6] -> [N, 5]."""
        x = self.inp(x)
        for i in range(2):
            k1 = self._slope(x, 0.5 * i)
            k2 = self._slope(x + 0.25 * k1, 0.5 * i + 0.25)
            x = x + 0.5 * k2
        logits: Tensor = self.head(x)
        return logits


class DLRM(nn.Module):
    """Embeddings of categories, inner products of all pairs, and a network on top (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
        self.tables = nn.ModuleList([nn.Embedding(10, 12) for _ in range(3)])
        self.top = nn.Sequential(nn.Linear(12 + 6, 16), nn.ReLU(), nn.Linear(16, 1))
        self.rows, self.columns = (
            nn.Buffer(torch.tensor([1, 2, 2, 3, 3, 3])),
            nn.Buffer(torch.tensor([0, 0, 1, 0, 1, 2])),
        )

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        """[N, 4], [N, 3] -> [N]."""
        x = self.bottom(dense)
        vectors = torch.stack([x, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        pairs = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return torch.sigmoid(self.top(torch.cat([x, pairs], 1))).squeeze(-1)


class FactorisationMachine(nn.Module):
    """First-order weights, second-order products and a deep part on shared embeddings (DeepFM)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed = nn.Embedding(30, 1), nn.Embedding(30, 12)
        nn.init.normal_(self.embed.weight, std=0.3)  # so that its sigmoid is not saturated
        self.deep = nn.Sequential(nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, fields: Tensor) -> Tensor:
        """[N, 4] -> [N]."""
        x = self.embed(fields)
        square = x.sum(1).pow(2) - x.pow(2).sum(1)
        total = self.first(fields).sum((1, 2)) + 0.5 * square.sum(1) + self.deep(x.flatten(1)).squeeze(-1)
        return torch.sigmoid(total)


class FeatureTokens(nn.Module):
    """A token for each column of a table, a class token, one block of attention (FT-Transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(6, 16)), nn.Parameter(torch.randn(6, 16))
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.norm1, self.attn = nn.LayerNorm(16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 2 * 20), nn.Linear(20, 16)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6] -> [N, 5]."""
        tokens = x.unsqueeze(-1) * self.weight + self.shift
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1)
        normed = self.norm1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        value, gate = self.up(self.norm2(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.down(value * F.relu(gate))
        logits: Tensor = self.head(tokens[:, 0])
        return logits


class TwoTowers(nn.Module):
    """Two networks that share a layer, and the cosine of their results (siamese retrieval)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(30, 16, mode="mean")
        self.user, self.shared = nn.Linear(6, 16), nn.Linear(16, 12)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, user: Tensor, words: Tensor) -> Tensor:
        """[N, 6], [N, L] -> similarities [N, N]."""
        left = F.normalize(self.shared(F.relu(self.user(user))), dim=-1)
        right = F.normalize(self.shared(F.relu(self.embed(words))), dim=-1)
        return left @ right.t() * self.scale.exp()


_EDGES = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1], [4, 3], [0, 4], [2, 3], [1, 4]])

ENTRIES: list[Entry] = [
    entry("gcn", GCN, draws((5, 6), (5, 5)), "graph", groups={"width": [12, 16]}),
    # features 16 before and after the update, its inside 24, four attention heads
    entry("messages", MessagePassing, lambda g: (torch.randn(5, 6, generator=g), _EDGES),
          "graph scatter batchnorm depth",
          groups={"width": [4, 16, 16, 24], "depth": [1]}),
    entry("spiking", Spiking, floats(3, 8, 8), "spiking conv batchnorm recurrent", groups={"width": [8, 16]}),
    # two hidden widths, and the bumps that all layers share
    entry("kan", KAN, floats(6), "kan einsum", groups={"width": [5, 12, 16]}),
    # the lifted channels, the results of both layers, the projection; the frequencies stay
    entry("fno", FNO, floats(8, 2), "fourier conv einsum", groups={"width": [12, 12, 12, 16]}),
    entry("deeponet", DeepONet, draws((10,), (4, 2)), "operator einsum", groups={"width": [12, 16, 16]}),
    entry("sine", Sine, floats(2), "physics", groups={"width": [8, 16, 16]}),
    # the clock is made like the first of twelve units, which therefore stays; in each of two steps the slope and its
    # middle can be left out
    entry("ode", NeuralODE, floats(6), "physics shared cat depth", groups={"width": [11, 16], "depth": [4]}),
    # the six pairs that are looked up can go as well
    entry("dlrm", DLRM, draws((4,), tokens(3, 10)), "tabular tokens", groups={"width": [6, 12, 16, 16]}),
    entry("deepfm", FactorisationMachine, tokens(4, 30), "tabular tokens batchnorm", groups={"width": [12, 16]}),
    entry("fttransformer", FeatureTokens, floats(6), "tabular attention layernorm gated depth",
          groups={"heads": [4], "width": [16, 20], "depth": [2]}),
    entry("towers", TwoTowers, draws((6,), tokens(4, 30)), "shared tokens", groups={"width": [12, 16]}),
]  # fmt: skip
