"""Networks whose way depends on the data, written as users write them: sequences, vectors, captions."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.testing.zoo_dynamic import IMAGES, Bottleneck, Factory, conv, image

Draw = Callable[[torch.Generator], Any]


class Attention(nn.Module):
    """Additive attention over regions."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(features, 32), nn.Linear(hidden, 32), nn.Linear(32, 1)

    def forward(self, regions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Context [N, F] and weights [N, R]."""
        scores = self.c(torch.tanh(self.a(regions) + self.b(hidden).unsqueeze(1))).squeeze(2)
        alpha = F.softmax(scores, dim=1)
        return (regions * alpha.unsqueeze(2)).sum(1), alpha


class ShowAttendTell(nn.Module):
    """A caption word by word until the end token (Xu et al., "Show, Attend and Tell", 2015); a ResNeXt looks."""

    def __init__(self, words: int = 60, longest: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 32, 2), Bottleneck(32, 64, 2, groups=8), Bottleneck(64, 64, 2, groups=8))
        self.embed, self.attend = nn.Embedding(words, 32), Attention(64, 48)
        self.cell, self.out = nn.LSTMCell(32 + 64, 48), nn.Linear(48, words)
        self.start, self.end, self.longest = 1, 2, longest
        with torch.no_grad():
            self.out.weight.mul_(6)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Words [N, T] and attention [N, T, R]."""
        regions = self.encoder(images).flatten(2).transpose(1, 2)
        h = regions.mean(1)[:, :48]
        c = torch.zeros_like(h)
        word = torch.full((images.size(0),), self.start, dtype=torch.long)
        words: list[Tensor] = []
        maps: list[Tensor] = []
        while len(words) < self.longest:
            context, alpha = self.attend(regions, h)
            h, c = self.cell(torch.cat([self.embed(word), context], dim=1), (h, c))
            word = self.out(h).argmax(dim=1)
            words.append(word)
            maps.append(alpha)
            if word.item() % 7 == self.end:
                break
        return torch.stack(words, dim=1), torch.stack(maps, dim=1)


class Inception(nn.Module):
    """Four ways side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, width, kernel=1), conv(inputs, width)
        self.five, self.pool = conv(inputs, width, kernel=5), conv(inputs, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4 width, H, W]."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(F.max_pool2d(x, 3, 1, 1))], 1)


class CaptionLSTM(nn.Module):
    """An image is the first word of an LSTM (GoogLeNet looks); tokens are collected as Python numbers."""

    def __init__(self, words: int = 40, longest: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16, 2), Inception(16, 8), nn.MaxPool2d(2), Inception(32, 8))
        self.embed, self.lstm, self.out = nn.Embedding(words, 32), nn.LSTM(32, 32), nn.Linear(32, words)
        self.longest = longest
        with torch.no_grad():
            self.out.weight.mul_(6)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Tokens, and the mean log-probability."""
        inputs = self.encoder(x).mean((2, 3)).unsqueeze(0)
        state = None
        tokens: list[int] = []
        score = 0.0
        for _ in range(self.longest):
            out, state = self.lstm(inputs, state)
            log_p = F.log_softmax(self.out(out.squeeze(0)), dim=-1)
            value, token = log_p.max(dim=-1)
            score += value.item()
            tokens.append(token.item())  # type: ignore[arg-type]
            if token.item() < 4:
                break
            inputs = self.embed(token).unsqueeze(0)
        return {"tokens": tokens, "score": score / len(tokens)}


class DeeBert(nn.Module):
    """Hugging Face's BERT layers with an exit after each (Xin et al., "DeeBERT", 2020)."""

    def __init__(self, layers: int = 5) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

        config = BertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=100,
                            max_position_embeddings=32, num_hidden_layers=layers)  # fmt: skip
        config._attn_implementation = "eager"
        self.embeddings = BertEmbeddings(config)  # type: ignore[no-untyped-call]
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(layers))  # type: ignore[no-untyped-call]
        self.highway = nn.ModuleList(nn.Linear(64, 3) for _ in range(layers))
        self.early_exit_entropy = [1.03] * layers

    def entropy(self, x: Tensor) -> Tensor:
        """Of the softmax of logits."""
        exp_x = torch.exp(x)
        total = torch.sum(exp_x, dim=1)
        return torch.log(total) - torch.sum(x * exp_x, dim=1) / total

    def forward(self, input_ids: Tensor) -> dict[str, Any]:
        """Logits, layers that were run, entropies."""
        hidden = self.embeddings(input_ids)
        entropies = []
        exit_layer = len(self.layer)
        for i, layer in enumerate(self.layer):
            out = layer(hidden)
            hidden = out[0] if isinstance(out, tuple) else out
            logits = self.highway[i](hidden[:, 0])
            highway_entropy = self.entropy(logits)
            entropies.append(highway_entropy)
            if highway_entropy < self.early_exit_entropy[i]:
                exit_layer = i + 1
                break
        return {"logits": logits, "exit_layer": exit_layer, "entropies": entropies}


class Patience(nn.Module):
    """Leaves when two heads in a row agree (Zhou et al., "BERT Loses Patience", 2020)."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(32, 5) for _ in range(layers))
        self.patience = 2

    def forward(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Logits and layers that were run."""
        x = self.embed(tokens)
        prev, counter, used = None, 0, 0
        for layer, head in zip(self.layers, self.heads):
            x = layer(x)
            used += 1
            logits = head(x[:, 0])
            label = logits.argmax(-1)
            if prev is not None and torch.equal(prev, label):
                counter += 1
            else:
                counter = 0
            if counter == self.patience:
                break
            prev = label
        return logits, used


class ACT(nn.Module):
    """Adaptive computation time (Graves, 2016) over a sequence."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.cell, self.halt, self.head = nn.GRUCell(12, size), nn.Linear(size, 1), nn.Linear(size, 3)
        self.threshold, self.most = 0.99, 8

    def ponder(self, x: Tensor, state: Tensor) -> tuple[Tensor, int]:
        """One position: steps until the halting probabilities add up."""
        total, steps = 0.0, 0
        mixed = torch.zeros_like(state)
        while total < self.threshold and steps < self.most:
            state = self.cell(x, state)
            p = torch.sigmoid(self.halt(state) * 3)
            weight = torch.clamp(p, max=1 - total)
            mixed = mixed + weight * state
            total += p.item()
            steps += 1
        return mixed, steps

    def forward(self, xs: Tensor) -> tuple[Tensor, int]:
        """Scores, and steps in all."""
        state = torch.zeros(xs.shape[0], 24)
        ponder_cost = 0
        for t in range(xs.shape[1]):
            state, steps = self.ponder(xs[:, t], state)
            ponder_cost += steps
        return self.head(state), ponder_cost


class Router(nn.Module):
    """Two layers of experts, one is chosen by index."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(size, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 64), nn.GELU(), nn.Linear(64, size)) for _ in range(4)
        )
        self.head = nn.Linear(size, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """Scores and the experts asked."""
        used = []
        for _ in range(2):
            index = self.gate(x).argmax(dim=-1).item()
            used.append(index)
            x = x + self.experts[index](x)
        return self.head(x), used


class FixedPoint(nn.Module):
    """A deep equilibrium network (Bai et al., 2019): iterates until it stands still."""

    def __init__(self, size: int = 48) -> None:
        super().__init__()
        self.w, self.u, self.head = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int, float]:
        """Scores, iterations, the last change."""
        z = torch.zeros_like(x)
        err = float("inf")
        n = 0
        while err > 1e-3:
            new = torch.tanh(self.w(z) + self.u(x))
            err = (new - z).norm().item() / (1e-8 + new.norm().item())
            z = new
            n += 1
            if n >= 60:
                break
        return self.head(z), n, err


class AdaptiveSteps(nn.Module):
    """Says itself how many steps it takes."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.count, self.step, self.head = nn.Linear(size, 1), nn.Linear(size, size), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores and steps."""
        steps = int(torch.sigmoid(self.count(x) * 4).item() * 6) + 1
        for i in range(steps):
            x = torch.tanh(self.step(x)) + x * (1.0 / (i + 1))
        return self.head(x), steps


class MixtureOfDepths(nn.Module):
    """Transformer layers that are skipped, and a memory of what was done."""

    def __init__(self, layers: int = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(layers))
        self.routers = nn.ModuleList(nn.Linear(32, 1) for _ in range(layers))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, int]]:
        """Scores and counts."""
        stats = {"run": 0, "skipped": 0}
        for i, (layer, router) in enumerate(zip(self.layers, self.routers)):
            score = router(x.mean(1) - x.mean())
            if not score > 0 and i != 0:
                stats["skipped"] += 1
                continue
            x = layer(x)
            stats["run"] += 1
        return self.head(x.mean(1)), stats


class TreeNet(nn.Module):
    """A soft decision tree walked down hard."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.depth = depth
        self.nodes = nn.ModuleList(nn.Linear(16, 1) for _ in range(2**depth - 1))
        self.leaves = nn.ModuleList(nn.Linear(16, 5) for _ in range(2**depth))

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores and the leaf."""
        node = 0
        for _ in range(self.depth):
            right = self.nodes[node](x) > 0
            node = 2 * node + 2 if right else 2 * node + 1
        leaf = node - (2**self.depth - 1)
        return self.leaves[leaf](x), leaf


class GreedyDecoder(nn.Module):
    """A small transformer that writes until it repeats itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, 32), nn.Embedding(24, 32)
        self.layer, self.out = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Linear(32, 20)

    def step(self, tokens: Tensor) -> Tensor:
        """The next token."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embed(tokens) + self.position(torch.arange(length))
        out: Tensor = self.out(self.layer(x, src_mask=mask))
        return out[:, -1].argmax(-1, keepdim=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens, longer."""
        for _ in range(6):
            token = self.step(tokens)
            tokens = torch.cat([tokens, token], dim=1)
            if (token == tokens[:, -2]).all() or token.item() in (0, 3):
                break
        return tokens


def _normal(*shape: int) -> Draw:
    return lambda generator: torch.randn(*shape, generator=generator)


def _tokens(words: int, *shape: int) -> Draw:
    return lambda generator: torch.randint(0, words, shape, generator=generator)


DYNAMIC: dict[str, tuple[Factory, Draw]] = {
    **{name: (factory, image) for name, factory in IMAGES.items()},
    "caption_attend": (ShowAttendTell, image), "caption_lstm": (CaptionLSTM, image),
    "deebert": (DeeBert, _tokens(100, 1, 12)), "patience": (Patience, _tokens(50, 1, 10)),
    "act": (ACT, _normal(1, 4, 12)), "router": (Router, _normal(1, 32)), "fixed_point": (FixedPoint, _normal(1, 48)),
    "adaptive_steps": (AdaptiveSteps, _normal(1, 16)), "mixture_of_depths": (MixtureOfDepths, _normal(1, 8, 32)),
    "tree": (TreeNet, _normal(1, 16)), "greedy_decoder": (GreedyDecoder, _tokens(20, 1, 5)),
}  # fmt: skip
"""Name to a factory and a function that draws one row."""


def dynamic(name: str, seed: int = 0) -> tuple[nn.Module, Draw]:
    """A network of `DYNAMIC` in evaluation mode, and its inputs. BatchNorm has seen data."""
    factory, draw = DYNAMIC[name]
    torch.manual_seed(seed)
    net = factory()
    generator = torch.Generator().manual_seed(seed)
    for norm in [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]:
        norm.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return net.eval(), draw
