"""Resolutions and lengths: smaller inputs, in front of the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant_runtime
from pliant import nets
from pliant.core import PliantError, call, tensors_of
from pliant.deploy import compile
from pliant.elastic import Elastic, elastic
from pliant.elastic.recipes import Nested, Sandwich
from pliant.elastic.resolution import check_sizes
from pliant.export import to_onnx
from pliant.testing import Subject, check
from tests.elastic.conv_nets import Video, stirred

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
CHOICES = {"resolution:*": [8, 12, 16]}


def resnet() -> nn.Module:
    return stirred(nets.resnet((3, 16, 16), 5, blocks=(1, 1), width=8)).eval()


@pytest.fixture(scope="module")
def family() -> Elastic:
    return elastic(resnet(), IMAGES, choices=CHOICES).eval()


def resize(images: Tensor, pixels: int) -> Tensor:
    return F.interpolate(images, (pixels, pixels), mode="bilinear", antialias=True, align_corners=False)


class Tagger(nn.Module):
    """Attention over tokens, with a mask of its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Int64 [N, T], bool [N, T] -> [N, T, 5]."""
        batch, length = tokens.shape
        q, k, v = self.qkv(self.embedding(tokens)).reshape(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        logits: Tensor = self.head(out.transpose(1, 2).reshape(batch, length, 16))
        return logits


TOKENS = {
    "tokens": torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(4)),
    "mask": torch.arange(12)[None] < torch.tensor([[12], [4]]),
}


@pytest.fixture(scope="module")
def tagger() -> Elastic:
    return elastic(stirred(Tagger()).eval(), TOKENS, choices={"length:*": [5, 12]}).eval()


@pytest.mark.parametrize("pixels", [8, 12, 16])
def test_the_network_sees_the_resized_image_whatever_size_comes_in(family: Elastic, pixels: int) -> None:
    model, config = resnet(), {"resolution:x": pixels}
    small = family.extract(config)
    for images in (IMAGES, torch.randn(3, 3, 20, 20)):
        wanted = model(resize(images, pixels))
        with family.using(config):
            torch.testing.assert_close(family(images), wanted)
        torch.testing.assert_close(small(images), wanted)


def test_at_full_size_nothing_changes(family: Elastic) -> None:
    assert torch.equal(family(IMAGES), resnet()(IMAGES))


def test_flops_are_those_of_the_resized_input(family: Elastic) -> None:
    for width in (4, 8):
        config = {"resolution:x": 8, "width:conv1": width}
        small = elastic(resnet(), IMAGES).extract({"width:conv1": width})
        alone = elastic(small, resize(IMAGES, 8)).cost({})
        assert family.cost(config).flops == alone.flops
        assert family.cost(config).parameters == alone.parameters
    assert family.cost({"resolution:x": 8}).flops < 0.3 * family.cost({}).flops


def test_a_video_keeps_its_frames() -> None:
    video, net = torch.randn(2, 3, 4, 8, 8), stirred(Video()).eval()
    family = elastic(net, video, choices={"resolution:video": [4, 8]}).eval()
    frames = resize(video.flatten(1, 2), 4).reshape(2, 3, 4, 4, 4)
    with family.using({"resolution:video": 4}):
        torch.testing.assert_close(family(video), net(frames))


def test_a_length_cuts_all_inputs_that_fit_the_pattern(tagger: Elastic) -> None:
    net = stirred(Tagger()).eval()
    wanted = net(TOKENS["tokens"][:, :5], TOKENS["mask"][:, :5])
    with tagger.using({"length:tokens": 5}):
        torch.testing.assert_close(call(tagger, TOKENS), wanted)
    torch.testing.assert_close(call(tagger.extract({"length:tokens": 5}), TOKENS), wanted)
    torch.testing.assert_close(call(tagger, TOKENS), call(net, TOKENS))
    short = elastic(net, {name: tensor[:, :5] for name, tensor in TOKENS.items()}).cost({})
    assert tagger.cost({"length:tokens": 5}) == short


def test_a_mask_that_the_pattern_leaves_out_is_refused() -> None:
    with pytest.raises(PliantError, match=r"tokens\[1\]: .* name every input of that length, as `length:\*` does"):
        elastic(Tagger(), TOKENS, choices={"length:tokens": [5, 12]})


class Branches(nn.Module):
    """Another network for large images, unless `plain`."""

    def __init__(self, *, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        out = F.relu(self.conv(x))
        if not self.plain and x.shape[-1] <= 10:
            out = out * 2
        logits: Tensor = self.head(out.mean((2, 3)))
        return logits


def test_a_branch_taken_by_size_is_found() -> None:
    with pytest.raises(PliantError, match=r"x.*its size is written into the network"):
        elastic(Branches(), IMAGES, choices={"resolution:x": [8, 16]})


def test_every_size_is_compared_with_the_original() -> None:
    plain, other = stirred(Branches(plain=True)), stirred(Branches())
    check_sizes(elastic(plain, IMAGES, choices={"resolution:x": [12, 16]}), other)
    with pytest.raises(PliantError, match="resolution:x = 8: the traced network computes something else"):
        check_sizes(elastic(plain, IMAGES, choices={"resolution:x": [8, 12, 16]}), other)


def test_sizes_that_the_network_cannot_take_are_refused() -> None:
    vit = nets.vit((3, 16, 16), 5, patch=8, dim=16, depth=1, heads=4)
    with pytest.raises(PliantError, match="resolution"):
        elastic(vit, IMAGES, choices={"resolution:x": [8, 16]})


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"resolution:x": [0.5, 16]}, "counts, not shares, got 0.5"),
        ({"resolution:x": [8, 12]}, "must include 16"),
        ({"resolution:x": [16, 32]}, r"must be in 1\.\.16, got 32"),
        ({"resolution:y": [8, 16]}, "fits no knob"),
        ({"length:x": [8, 16]}, "cannot bend: x .*no sequence"),
    ],
)
def test_bad_choices(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        elastic(resnet(), IMAGES, choices=choices)


def test_without_being_asked_nothing_is_resized() -> None:
    net = elastic(resnet(), IMAGES, choices={"*": [0.5, 1.0], "depth:*": [True]})
    assert not {knob.kind for knob in net.space} & {"resolution", "length", "kernel"}
    assert not any("upsample" in node.target for node in net.graph.program)


@pytest.mark.parametrize("make", [resnet, lambda: stirred(Video()).eval()], ids=["image", "video"])
def test_export_takes_the_fast_way_with_antialiasing(make: Callable[[], nn.Module]) -> None:
    net = make()
    example = IMAGES if not isinstance(net, Video) else torch.randn(2, 3, 4, 8, 8)
    name = "x" if not isinstance(net, Video) else "video"
    whole = example.shape[-1]
    small = elastic(net, example, choices={"resolution:*": [whole // 2, whole]}).extract(
        {f"resolution:{name}": whole // 2}
    )
    model = to_onnx(small.eval(), example)
    assert model.exporter == "legacy"
    assert model.errors["max_rel"] < 1e-4


def test_an_artifact_takes_full_size_images_at_every_resolution(family: Elastic, tmp_path: Path) -> None:
    configs = [{"resolution:x": 8}, {"resolution:x": 16}]
    compile(family, tmp_path / "art", configs=configs)
    loaded = pliant_runtime.load(tmp_path / "art")
    for entry in loaded.entries:
        with family.using(entry.config), torch.no_grad():
            wanted = family(IMAGES)
        got = loaded.run(IMAGES.numpy(), config=entry.config, preprocessed=True)
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


def test_storage_recipes_and_report(family: Elastic, tmp_path: Path) -> None:
    family.save(tmp_path / "net")
    back = Elastic.load(tmp_path / "net").eval()
    config = {"resolution:x": 12}
    assert back.space == family.space
    assert back.cost(config) == family.cost(config)
    with family.using(config), back.using(config):
        assert torch.equal(back(IMAGES), family(IMAGES))
    for recipe in (Nested(whole=0.0), Sandwich()):
        drawn = [c for s in range(60) for c in recipe.draw(family, torch.Generator().manual_seed(s))]
        assert {config["resolution:x"] for config in drawn} == {8, 12, 16}
    text = str(family.report())
    assert "16 pixels" in text
    assert "1 resolution" in family.report().headline()


def test_laws() -> None:
    images = Subject("resolutions", resnet, lambda: IMAGES, choices=CHOICES)
    words = Subject("lengths", lambda: stirred(Tagger()), lambda: TOKENS, choices={"length:*": [5, 12]})
    broken = [str(verdict) for subject in (images, words) for verdict in check(subject) if not verdict.holds]
    assert not broken


def test_outputs_by_position_shrink(tagger: Elastic) -> None:
    with tagger.using({"length:tokens": 5}):
        assert [tensor.shape for tensor in tensors_of(call(tagger, TOKENS))] == [(2, 5, 5)]
