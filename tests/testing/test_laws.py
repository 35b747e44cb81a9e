"""Every law on every network of the zoo, what each of them must find there, and that broken networks are caught."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import PliantError
from pliant.elastic import Elastic, OnePass
from pliant.elastic.onepass.shells import Shells
from pliant.elastic.recipes import Nested
from pliant.report import catalogue
from pliant.testing import LAWS, LawBroken, Subject, check, zoo_subjects
from pliant.testing import laws as laws_module
from pliant.testing.entry import found_groups
from pliant.testing.laws import NOT_ONE_PASS
from pliant.testing.subject import Case, case_of, gap
from pliant.testing.zoo import ZOO

NO_PREFIXES = {"gpt", "lstm", "mbnet", "bilstm", "gru", "shared", "mixer", "gpt2", "llama", "bert"}
"""Networks that cannot be one pass: tied embeddings, recurrences, squeeze-excite, norms and products over widths."""
WHOLE = zoo_subjects()
SUBJECTS = zoo_subjects("core")


def _subject(name: str, make: Callable[[], nn.Module], *shape: int) -> Subject:
    def seeded_make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return Subject(name, seeded_make, lambda: torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)))


DROPOUT = {
    subject.name: subject
    for subject in (
        _subject("mlp-dropout", lambda: nets.mlp((12,), 5, hidden=(16, 12), dropout=0.3), 12),
        _subject("vit-dropout", lambda: nets.vit((3, 8, 8), 5, dim=16, depth=1, heads=4, dropout=0.2), 3, 8, 8),
        _subject("lstm-dropout", lambda: nets.lstm((5, 6), 5, hidden=8, layers=2, dropout=0.3), 5, 6),
    )
}


@pytest.mark.parametrize(("name", "law"), [(name, law) for name in SUBJECTS for law in LAWS])
def test_law(name: str, law: str) -> None:
    figures = LAWS[law](SUBJECTS[name])
    if law == "prefix_equals_column":
        assert figures.startswith(NOT_ONE_PASS) == (name in NO_PREFIXES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "law"), [(name, law) for name in WHOLE if name not in SUBJECTS for law in LAWS])
def test_law_on_the_whole_zoo(name: str, law: str) -> None:
    LAWS[law](WHOLE[name])


@pytest.mark.parametrize("name", DROPOUT)
@pytest.mark.parametrize("law", ["widest_equals_original", "sliced_equals_extracted", "slices_only", "save_load"])
def test_law_with_dropout(name: str, law: str) -> None:
    LAWS[law](DROPOUT[name])


BLOCKS = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
SPANS: dict[str, list[str]] = {
    # only the identity shortcuts of the first stage can stand alone
    "resnet": ["stages.0.0", "stages.0.1"],
    "vit": BLOCKS,
    "gpt": BLOCKS,
    "mbnet": ["blocks.0", "blocks.2"],
    "resnext": ["block1", "block2"],
    "encoder": ["encoder.layers.0.self_attn", "encoder.layers.0", "encoder.layers.1.self_attn", "encoder.layers.1"],
    "convnext": ["block1", "block2"],
    "mixer": [f"blocks.{i}.{part}_mlp" for i in range(2) for part in ("token", "channel")],
    "tcn": ["blocks.0", "blocks.1"],
    "gpt2": [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp")],
    "llama": [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "mlp")],
    "bert": [f"encoder.layer.{i}{part}" for i in range(2) for part in (".attention", "")],
}
"""What can be skipped, by the names of its knobs: they are stored in configs, so that they may not change."""

MISSED: dict[str, str] = {}
"""Networks of which less is found than a person expects, and the operator that is in the way."""


def _expected(names: Iterable[str]) -> list[Any]:
    """The networks of which somebody wrote down what to find; those of transformers are slow."""
    return [
        pytest.param(
            name,
            marks=[pytest.mark.slow] * ("core" not in ZOO[name].tags)
            + [pytest.mark.xfail(strict=True, reason=MISSED.get(name, ""))] * (name in MISSED),
        )
        for name in names
        if ZOO[name].groups is not None
    ]


@pytest.mark.parametrize("name", _expected(ZOO))
def test_the_groups_are_those_of_the_architecture(name: str) -> None:
    family = case_of(WHOLE[name]).family
    assert found_groups(family) == {kind: list(units) for kind, units in (ZOO[name].groups or {}).items()}
    assert family.dropped == ()
    knobs = {knob.name for knob in family.space}
    assert knobs <= {g.name for g in family.graph.groups} | set(family.graph.span_names)
    assert set(family.graph.span_names) <= knobs


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_rigid_and_spans_keep_their_names(name: str) -> None:
    family = case_of(SUBJECTS[name]).family
    assert [rigid for rigid in family.graph.rigid if not rigid.reason.startswith("keeps the size of")] == []
    assert family.graph.notes == []
    if name in SPANS:
        assert family.graph.span_names == [f"depth:{span}" for span in SPANS[name]]


def test_no_network_needs_silent_axes() -> None:
    """The law finds out by itself which values do not matter, so that no entry has to excuse any."""
    assert not [name for name, subject in WHOLE.items() if subject.silent]


def test_every_method_promises_laws_that_exist() -> None:
    for method in catalogue():
        assert set(method.facts.laws) <= set(LAWS), method.name


# -- the laws catch what they are for --------------------------------------------------------------------------------


def _broken(law: str, monkeypatch: pytest.MonkeyPatch, change: Callable[[Case], Case | None], name: str = "mlp") -> str:
    """What a law says of a case in which something was made wrong."""
    case = copy.deepcopy(case_of(SUBJECTS[name]))
    changed = change(case) or case
    monkeypatch.setattr(laws_module, "case_of", lambda subject: changed)
    with pytest.raises(LawBroken) as caught:
        LAWS[law](SUBJECTS[name])
    assert (caught.value.network, caught.value.law) == (name, law)
    assert str(caught.value) == f"{name} breaks {law}: {caught.value.figures}"
    return caught.value.figures


def test_a_changed_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def model_that_counts() -> nn.Module:
        return Counting()

    subject = Subject("counting", model_that_counts, lambda: torch.randn(2, 4))
    verdict = check(subject, ["input_unchanged", "widest_equals_original"])
    assert [v.holds for v in verdict] == [True, False]
    text = _broken("input_unchanged", monkeypatch, lambda case: replace(case, changes=("weight", "the random state")))
    assert text == "changed: weight, the random state"


class Counting(nn.Module):
    """Computes something else every time, behind the back of any trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.head(torch.relu(self.layer(x))) * self.calls
        return out


def _nudge(net: nn.Module, name: str) -> None:
    with torch.no_grad():
        dict(net.named_parameters())[name].view(-1)[0] += 0.1


def test_another_function_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _broken("widest_equals_original", monkeypatch, lambda case: _nudge(case.model, "head.bias"))
    assert text.startswith("outputs in evaluation differ by ")


def test_a_wrong_extraction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    extract = Elastic.extract

    def wrong(net: Elastic, config: Any) -> nn.Module:
        module = extract(net, config)
        _nudge(module, "head.bias")
        return module

    monkeypatch.setattr(Elastic, "extract", wrong)
    with pytest.raises(LawBroken, match="outputs in evaluation of"):
        LAWS["sliced_equals_extracted"](SUBJECTS["mlp"])


def test_units_tied_wrongly_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def reverse(case: Case) -> None:
        axis = case.family.graph.state_axes["head.weight"][1]
        axis.rank = axis.rank[::-1].copy()

    text = _broken("permutation", monkeypatch, reverse)
    assert text.startswith("all groups at once: output changes by")

    def forget(case: Case) -> None:
        with torch.no_grad():
            case.family.graph.states["body.2.bias"].fill_(0.5)

    text = _broken("leave_one_axis_out", monkeypatch, forget)
    assert text.endswith("axes are silent: body.2.bias[0] of width:body.2")


def test_an_optimizer_that_reaches_too_far_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nested, "update", lambda self, net, optimizer: optimizer.step())
    with pytest.raises(LawBroken, match="moved outside"):
        LAWS["slices_only"](SUBJECTS["mlp"])


def test_a_wrong_cost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(case: Case) -> None:
        case.family.graph.analysis.macs[0] = ("linear", 5.0, [])

    assert "torch counts" in _broken("cost_falls", monkeypatch, double)


def test_a_span_cut_at_the_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(case: Case) -> None:
        graph = case.family.graph
        graph.spans[0] = replace(graph.spans[0], branch=graph.spans[1].branch)

    assert "reference outputs differ" in _broken("depth_skips", monkeypatch, move, "vit")


def _one_pass_breaks(figures: str, name: str = "mlp") -> None:
    with pytest.raises(LawBroken, match=figures):
        LAWS["prefix_equals_column"](SUBJECTS[name])


def test_a_width_that_is_no_column_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        taken = OnePass.extract

        def nudged(net: OnePass, width: int) -> nn.Module:
            module = taken(net, width)
            _nudge(module, "head.bias")
            return module

        patch.setattr(OnePass, "extract", nudged)
        _one_pass_breaks("width 1 taken out differ by")
    with monkeypatch.context() as patch:
        patch.setattr(OnePass, "at", lambda net, width: net.extract(net.widths))
        _one_pass_breaks("width 1 alone differ by")
    with monkeypatch.context() as patch:  # a width that reads a unit of the next shell
        cut = Shells.index
        patch.setattr(Shells, "index", lambda self, vector, shell, *, alone=False: cut(self, vector, 1, alone=alone))
        _one_pass_breaks("width 2")


def test_a_width_that_trains_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Module):
        def __init__(self, net: OnePass, width: int) -> None:
            super().__init__()
            self.net, self.width = net, width

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.net(x, width=self.width)
            return output + (output - output.detach())

    monkeypatch.setattr(OnePass, "at", lambda net, width: Doubled(net, width))
    _one_pass_breaks("gradients of width 1 in training differ by")


def test_statistics_of_another_batch_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = OnePass.extract

    def moved(net: OnePass, width: int) -> nn.Module:
        module = taken(net, width)
        module.bn1.running_mean.add_(1)  # type: ignore[union-attr, operator]
        return module

    monkeypatch.setattr(OnePass, "extract", moved)
    monkeypatch.setattr(laws_module, "prefixes_run", lambda *_: 0.0)  # in evaluation it shows already
    _one_pass_breaks("statistics .* of width 1 in training", "resnet")


def test_a_refusal_without_a_way_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PliantError("it is not possible", where="somewhere")

    monkeypatch.setattr(laws_module, "one_pass", refuse)
    _one_pass_breaks("refused without a place or a way out: somewhere: it is not possible")


def test_gap_sees_shape_dtype_count_and_nan() -> None:
    one = torch.tensor([1.0, 2.0])
    assert gap(one, one.clone()) == 0.0
    assert gap((one, {"a": torch.tensor([3])}), (one, {"a": torch.tensor([3])})) == 0.0
    assert gap(one + 0.2, one) == pytest.approx(0.1)
    infinite = float("inf")
    assert gap(one, one[:1]) == gap(one, one.double()) == gap(one, (one, one)) == infinite
    assert gap(torch.tensor([1]), torch.tensor([2])) == gap(one * float("nan"), one) == infinite
    assert gap(one, one * float("nan")) == infinite
    assert gap((), ()) == 0.0


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_gives_verdicts_for_a_network_of_your_own() -> None:
    subject = _subject("mine", lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), 6)
    verdicts = check(subject)
    assert [verdict.law for verdict in verdicts] == list(LAWS)
    assert all(verdict.holds and verdict.network == "mine" and verdict.seconds >= 0 for verdict in verdicts)
    assert str(verdicts[0]) == "holds  mine-input_unchanged: nothing changed"


def test_check_runs_the_laws_asked_for_and_names_the_others() -> None:
    assert [verdict.law for verdict in check(SUBJECTS["mlp"], ["cost_falls"])] == ["cost_falls"]
    with pytest.raises(ValueError, match="no law 'permutations'; laws are input_unchanged, ") as caught:
        check(SUBJECTS["mlp"], ["permutations"])
    assert all(law in str(caught.value) for law in LAWS)


class Deciding(nn.Module):
    """What no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_check_of_a_network_that_cannot_be_traced_says_why() -> None:
    (verdict,) = check(Subject("deciding", Deciding, lambda: torch.randn(2, 3)), ["permutation"])
    assert not verdict.holds
    assert "this line decides by the values of a tensor" in verdict.figures
    with pytest.raises(PliantError):
        LAWS["permutation"](Subject("deciding", Deciding, lambda: torch.randn(2, 3)))


@pytest.mark.parametrize("law", LAWS)
def test_laws_leave_the_random_state_alone(law: str) -> None:
    state = torch.get_rng_state()
    LAWS[law](SUBJECTS["mlp"])
    assert torch.equal(torch.get_rng_state(), state)
