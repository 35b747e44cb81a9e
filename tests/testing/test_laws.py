"""Every law on every network of the zoo, what each of them must find there, and that broken networks are caught."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import PliantError
from pliant.elastic import Elastic
from pliant.elastic.recipes import Nested
from pliant.report import catalogue
from pliant.testing import LAWS, LawBroken, Subject, check, zoo_subjects
from pliant.testing import laws as laws_module
from pliant.testing.subject import Case, case_of, gap

SUBJECTS = zoo_subjects()


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
    LAWS[law](SUBJECTS[name])


@pytest.mark.parametrize("name", DROPOUT)
@pytest.mark.parametrize("law", ["widest_equals_original", "sliced_equals_extracted", "slices_only", "save_load"])
def test_law_with_dropout(name: str, law: str) -> None:
    LAWS[law](DROPOUT[name])


# Read off the architectures by hand: the units of every group, then what can be skipped.
STREAM_HEADS_MLP = [("heads", 4), ("heads", 4), ("width", 16), ("width", 64), ("width", 64)]
BLOCKS = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
EXPECTED: dict[str, tuple[list[tuple[str, int]], list[str]]] = {
    # two hidden layers
    "mlp": ([("width", 12), ("width", 16)], []),
    # first stage: its stream and one inner width a block; second stage: its stream and one inner width. Only the
    # identity shortcuts of the first stage can stand alone
    "resnet": ([("width", n) for n in (8, 8, 8, 16, 16)], ["stages.0.0", "stages.0.1"]),
    # a depthwise convolution carries its input's channels on
    "dwsep": ([("width", n) for n in (8, 16, 24)], []),
    "vit": (STREAM_HEADS_MLP, BLOCKS),
    "gpt": (STREAM_HEADS_MLP, BLOCKS),
    # features are the input's
    "lstm": ([("width", 10)], []),
    # stem = first stream 8, three hidden widths, three squeezes (4, 6, 6), second stream 12, classifier 20
    "mbnet": ([("width", n) for n in (4, 6, 6, 8, 12, 16, 20, 24, 24)], ["blocks.0", "blocks.2"]),
    # four convolution groups in either block; the stream is normalised in four groups
    "resnext": ([("width", 4)] * 3, ["block1", "block2"]),
    # stem 8, growths 4 and 4, transition 8, growth 4
    "densenet": ([("width", n) for n in (4, 4, 4, 8, 8)], []),
    # every convolution but the head has channels of its own: 6 6 8 8 10 10, up 8, merge 8 8, up 6, merge 6 6
    "unet": ([("width", n) for n in (6, 6, 6, 6, 6, 8, 8, 8, 8, 8, 10, 10)], []),
    # the input layer; one hidden width over layers and directions
    "bilstm": ([("width", 8), ("width", 10)], []),
    "gru": ([("width", 10), ("width", 12), ("width", 16)], []),
    "encoder": (
        [("heads", 4), ("heads", 4), ("width", 16), ("width", 32), ("width", 32)],
        ["encoder.layers.0.self_attn", "encoder.layers.0", "encoder.layers.1.self_attn", "encoder.layers.1"],
    ),
    # gated 9, stream 12 with the tied embedding, shared hidden 16. The shared module is used twice, so neither use
    # owns its weights; the last residual branch spans two modules and is called by its addition
    "shared": ([("width", 9), ("width", 12), ("width", 16)], ["add_2"]),
    "convnext": ([("width", n) for n in (8, 12, 32, 48)], ["block1", "block2"]),
    # tokens are image positions, so that they stay; both hidden widths of both blocks bend
    "mixer": (
        [("width", n) for n in (16, 24, 24, 32, 32)],
        ["blocks.0.token_mlp", "blocks.0.channel_mlp", "blocks.1.token_mlp", "blocks.1.channel_mlp"],
    ),
    # the stem's second half feeds the first branch alone (8); its first half is shuffled with the first branch's
    # output, so they are paired, and split once more by the second block (4 passed, 4 worked); branches 8 and 8;
    # last 24
    "shufflenet": ([("width", n) for n in (4, 4, 8, 8, 8, 24)], []),
    # filter and gate are multiplied, so they are one width
    "tcn": ([("width", n) for n in (8, 12, 12)], ["blocks.0", "blocks.1"]),
    "gpt2": (
        [("heads", 4), ("heads", 4), ("width", 24), ("width", 32), ("width", 32)],
        [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp")],
    ),
    # a head is a key-value head with its two query heads
    "llama": (
        [("heads", 2), ("heads", 2), ("width", 24), ("width", 32), ("width", 32)],
        [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "mlp")],
    ),
    # the stream is the output, so that it stays
    "bert": (
        [("heads", 4), ("heads", 4), ("width", 32), ("width", 32)],
        [f"encoder.layer.{i}{part}" for i in range(2) for part in (".attention", "")],
    ),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_groups_and_spans_are_those_of_the_architecture(name: str) -> None:
    groups, spans = EXPECTED[name]
    family = case_of(SUBJECTS[name]).family
    assert sorted((g.kind, g.units) for g in family.graph.groups) == groups
    assert family.graph.span_names == [f"depth:{span}" for span in spans]
    assert family.graph.rigid == []
    assert family.graph.notes == []
    assert family.dropped == ()
    knobs = {knob.name for knob in family.space}
    assert knobs <= {g.name for g in family.graph.groups} | set(family.graph.span_names)
    assert set(family.graph.span_names) <= knobs


def test_silent_axes_are_few_and_have_reasons() -> None:
    silent = {name: sorted(subject.silent) for name, subject in SUBJECTS.items() if subject.silent}
    assert set(silent) <= {"bert"}
    for name, places in silent.items():
        reached = {
            f"{state}[{axis}]" for group in case_of(SUBJECTS[name]).family.graph.groups for state, axis in group.where
        }
        assert set(places) <= reached
        with pytest.raises(LawBroken, match=f"{len(places)} of .* axes are silent"):
            LAWS["leave_one_axis_out"](replace(SUBJECTS[name], silent={}))


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
