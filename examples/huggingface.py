"""A Hugging Face language model becomes a family of networks: every size from one training.

Random weights and the text that pliant ships, so that nothing is downloaded; `from_pretrained` works the same.
"""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import pliant


def main(epochs: int = 25, seed: int = 0) -> dict[int, float]:
    """Trains, cuts out networks of four sizes, and returns their next-token accuracy by number of parameters."""
    torch.manual_seed(seed)
    data = pliant.data.load("tiny-text", seed=seed)
    tokens: dict[str, Any] = {"vocab_size": data.outputs, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(n_positions=64, n_embd=64, n_layer=2, n_head=4, use_cache=False, **tokens)
    net = pliant.elastic(GPT2LMHeadModel(config), data.example())
    settings = pliant.Settings(lr=3e-3, batch_size=8)
    pliant.train(net, data, recipe=pliant.recipes.Sandwich(), epochs=epochs, settings=settings, seed=seed)
    accuracy = {}
    for share in (0.25, 0.5, 0.75, 1.0):
        small = net.extract(net.space.uniform(share))
        accuracy[sum(parameter.numel() for parameter in small.parameters())] = pliant.evaluate(small, data.val)
    return accuracy


if __name__ == "__main__":
    for parameters, value in main().items():
        print(f"{parameters:>8,} parameters: {value:.1%} of the next letters right")
