import copy
import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from pliant import nets

IMAGE = {"shape": (1, 8, 8), "classes": 7}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {**IMAGE, "hidden": [12, 8]},
    "resnet": {**IMAGE, "blocks": [2, 1], "width": 4},
    "resnet8": {**IMAGE, "width": 4},
    "resnet20": {**IMAGE, "width": 4},
    "resnet56": {**IMAGE, "width": 4},
    "dwsep": {**IMAGE, "stem": 4, "channels": [8, 6], "strides": [2, 1]},
    "vit": {**IMAGE, "dim": 12, "depth": 2, "heads": 3},
    "gpt": {"shape": (10,), "classes": 7, "dim": 12, "depth": 2, "heads": 3},
    "lstm": {"shape": (9, 5), "classes": 7, "hidden": 6},
    "unet": {**IMAGE, "width": 4, "levels": 2},
}


def small(name: str, **changes: Any) -> Any:
    return getattr(nets, name)(**{**SMALL[name], **changes})


def batch(name: str, n: int = 3) -> Any:
    shape = SMALL[name]["shape"]
    return torch.randint(7, (n, *shape)) if name == "gpt" else torch.randn(n, *shape)


def test_every_factory_is_tested() -> None:
    assert sorted(SMALL) == sorted(nets.__all__)


@pytest.mark.parametrize("name", nets.__all__)
def test_forward_shape(name: str) -> None:
    expected = {"gpt": (3, 10, 7), "unet": (3, 7, 8, 8)}.get(name, (3, 7))
    assert small(name)(batch(name)).shape == expected


@pytest.mark.parametrize("name", nets.__all__)
def test_shape_and_classes_come_first_and_have_defaults(name: str) -> None:
    parameters = list(inspect.signature(getattr(nets, name)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["shape", "classes"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])
    assert all(p.default is not inspect.Parameter.empty for p in parameters)


@pytest.mark.parametrize("name", nets.__all__)
def test_arguments_survive_json(name: str) -> None:
    torch.manual_seed(0)
    net = small(name)
    torch.manual_seed(0)
    again = getattr(nets, name)(**json.loads(json.dumps(SMALL[name])))
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("name", nets.__all__)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    net = small(name)
    net(batch(name)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", nets.__all__)
def test_samples_do_not_mix_in_eval(name: str) -> None:
    net, x = small(name).eval(), batch(name)
    assert torch.allclose(net(x)[1], net(x[1:2])[0], atol=1e-5)


@pytest.mark.parametrize("name", nets.__all__)
def test_dropout_acts_in_training_only(name: str) -> None:
    net, x = small(name, dropout=0.5), batch(name)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("name", nets.__all__)
def test_without_dropout_there_is_no_randomness(name: str) -> None:
    net, x = small(name), batch(name)
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_mlp_without_hidden_layers_is_linear() -> None:
    net = nets.mlp((4,), 3, hidden=[])
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.allclose(net(x + y) + net(torch.zeros(2, 4)), net(x) + net(y), atol=1e-5)


def test_resnet_depths() -> None:
    def weighted(net: Any) -> Any:
        return sum(p.ndim > 1 for n, p in net.named_parameters() if "shortcut" not in n)

    assert weighted(nets.resnet8()) == 8
    assert weighted(nets.resnet20()) == 20
    assert weighted(nets.resnet56()) == 56


def test_resnet_projects_only_where_the_shape_changes() -> None:
    names = {name.rsplit(".shortcut", 1)[0] for name, _ in small("resnet").named_parameters() if "shortcut" in name}
    assert names == {"stages.1.0"}


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    # He et al. 2015, table 6: 0.27 M
    assert round(sum(p.numel() for p in nets.resnet20().parameters()) / 1e6, 2) == 0.27


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vit_pooling(pool: str) -> None:
    net = small("vit", pool=pool)
    assert net.pos_embed.shape == (1, 4 + (pool == "token"), 12)
    assert net(batch("vit")).shape == (3, 7)


def test_gpt_is_causal() -> None:
    net, x = small("gpt").eval(), batch("gpt")
    y = x.clone()
    y[:, 6:] = (y[:, 6:] + 1) % 7
    assert torch.equal(net(x)[:, :6], net(y)[:, :6])
    assert not torch.equal(net(x)[:, 6:], net(y)[:, 6:])


def test_gpt_takes_shorter_sequences_and_ties_its_head() -> None:
    net = small("gpt")
    assert net(batch("gpt")[:, :4]).shape == (3, 4, 7)
    assert net.head.weight is net.tokens.weight
    free = small("gpt", tied=False)
    assert free.head.weight is not free.tokens.weight


def test_lstm_tokens_layers_and_directions() -> None:
    net = nets.lstm((9,), 7, vocabulary=20, embedding=4, hidden=6, layers=2, bidirectional=True, dropout=0.1)
    assert net(torch.randint(20, (3, 9))).shape == (3, 7)
    assert net.lstm.num_layers == 2
    assert net.fc.in_features == 12


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("mlp", {"classes": 0}, "classes must be a whole number of at least 1, got 0"),
        ("mlp", {"hidden": [8, -1]}, r"hidden\[1\] must be .* got -1"),
        ("mlp", {"activation": "step"}, "activation must be one of relu, .* got 'step'"),
        ("mlp", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ("mlp", {"shape": ()}, "shape must be a non-empty list"),
        ("resnet", {"shape": (8, 8)}, "shape must be \\(channels, height, width\\)"),
        ("resnet", {"blocks": []}, "blocks must be a non-empty list"),
        ("resnet", {"width": 4.0}, "width must be a whole number"),
        ("resnet", {"width": True}, "width must be a whole number"),
        ("dwsep", {"strides": [1]}, "strides must be as many as channels, got 1 and 2"),
        ("vit", {"patch": 3}, "patch must divide height, got patch=3 and height=8"),
        ("vit", {"heads": 5}, "heads must divide dim, got heads=5 and dim=12"),
        ("vit", {"pool": "max"}, "pool must be one of token, mean, got 'max'"),
        ("gpt", {"shape": (1, 8, 8)}, "shape must be \\(context length,\\)"),
        ("gpt", {"heads": 5}, "heads must divide dim"),
        ("lstm", {"shape": (9,)}, "vocabulary must be at least 1"),
        ("lstm", {"vocabulary": 9}, "vocabulary must be 0"),
        ("lstm", {"shape": (1, 8, 8)}, "shape must be \\(T, features\\) or \\(T,\\)"),
    ],
)
def test_bad_arguments(name: str, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **bad)


def test_nets_import_nothing_of_pliant() -> None:
    code = "import sys, pliant.nets; print(*(m for m in sys.modules if m.startswith('pliant.')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = [name for name in out.split() if not name.startswith("pliant.nets")]
    assert loaded == []
