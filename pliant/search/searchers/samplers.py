"""Optuna's samplers behind the contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pliant.core import Config, Facts, Knob, Space, at_least
from pliant.search import codes as c
from pliant.search.pareto import Array
from pliant.search.searchers.contract import rng_at
from pliant.search.searchers.random_search import Random
from pliant.search.trials import quiet

_TRIES = 8


@dataclass(frozen=True)
class Tpe:
    """Optuna's multi-objective tree-structured Parzen estimator, as a baseline or for spaces where nothing is linear.

    Ozaki, Tanigaki, Watanabe & Onishi 2020, "Multiobjective tree-structured Parzen estimator for computationally
    expensive optimization problems" <https://doi.org/10.1145/3377930.3389817>. Knobs that are not there are not asked
    for. A proposal that was measured before is replaced by a random one.
    """

    facts: ClassVar[Facts] = Facts(
        title="Multiobjective tree-structured Parzen estimator for computationally expensive optimization problems",
        year=2020,
        room="search",
        deviations=("a proposal that was measured before is replaced by a random one",),
    )

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        rng, seen = rng_at(seed, len(configs)), set(configs)
        with quiet() as optuna:
            sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)))
            study = optuna.create_study(directions=["minimize"] * costs.shape[1], sampler=sampler)
            kinds = {knob.name: _distribution(optuna, knob) for knob in space}
            for codes, row in zip(c.encode(space, configs).tolist(), costs.tolist(), strict=True):
                params = {knob.name: code for knob, code in zip(space, codes, strict=True) if code >= 0}
                study.add_trial(_trial(optuna, params, kinds, row))
            for _ in range(_TRIES):
                config = _asked(study.ask(), space, kinds)
                if config not in seen:
                    return config
        return Random().propose(space, configs, costs=costs, seed=seed)


@dataclass(frozen=True)
class Gp:
    """Optuna's Gaussian process with the logarithm of the expected improvement, of hypervolume with more objectives.

    Ament, Daulton, Eriksson, Balandat & Bakshy 2023, "Unexpected Improvements to Expected Improvement for Bayesian
    Optimization" <https://arxiv.org/abs/2310.20708>. Knobs that are not there stand at their first choice for the
    process. A proposal that was measured before is replaced by a random one.

    Args:
        initial: how many configs are measured before the first process is fitted.

    Raises:
        ValueError: `initial` below 1.
    """

    facts: ClassVar[Facts] = Facts(
        title="Unexpected Improvements to Expected Improvement for Bayesian Optimization",
        year=2023,
        room="search",
        deviations=(
            "knobs that are not there stand at their first choice",
            "a proposal that was measured before is replaced by a random one",
        ),
    )

    initial: int = 10

    def __post_init__(self) -> None:
        at_least(self, initial=1)

    def propose(self, space: Space, configs: Sequence[Config], *, costs: Array, seed: int) -> Config:
        """See `Proposer`."""
        if len(configs) < self.initial or len(space) == 0:
            return Random().propose(space, configs, costs=costs, seed=seed)
        rng, seen = rng_at(seed, len(configs)), set(configs)
        with quiet() as optuna:
            sampler = optuna.samplers.GPSampler(
                seed=int(rng.integers(2**31)), n_startup_trials=0, deterministic_objective=True
            )
            study = optuna.create_study(directions=["minimize"] * costs.shape[1], sampler=sampler)
            kinds = {knob.name: _distribution(optuna, knob) for knob in space}
            for codes, row in zip(c.encode(space, configs).clip(0).tolist(), costs.tolist(), strict=True):
                params = dict(zip(kinds, codes, strict=True))
                study.add_trial(_trial(optuna, params, kinds, row))
            codes = dict(study.ask(kinds).params)
        config = _there(space, codes)
        return config if config not in seen else Random().propose(space, configs, costs=costs, seed=seed)


def _distribution(optuna: Any, knob: Knob) -> Any:
    """Numbers of choices: a range of them where neighbours are alike."""
    if knob.ordered and len(knob.choices) > 2:
        return optuna.distributions.IntDistribution(0, len(knob.choices) - 1)
    return optuna.distributions.CategoricalDistribution(range(len(knob.choices)))


def _trial(optuna: Any, params: dict[str, Any], kinds: Mapping[str, Any], costs: list[float]) -> Any:
    return optuna.create_trial(values=costs, params=params, distributions={name: kinds[name] for name in params})


def _asked(trial: Any, space: Space, kinds: Mapping[str, Any]) -> Config:
    """One config, knob by knob: what is not there is not asked for."""
    codes: list[int] = []
    for knob, own in zip(space, space.conditions, strict=True):
        if not all(codes[parent] in allowed for parent, allowed in own):
            codes.append(-1)
        elif hasattr(kinds[knob.name], "choices"):
            codes.append(trial.suggest_categorical(knob.name, kinds[knob.name].choices))
        else:
            codes.append(trial.suggest_int(knob.name, 0, len(knob.choices) - 1))
    return _there(space, {knob.name: code for knob, code in zip(space, codes, strict=True)})


def _there(space: Space, codes: Mapping[str, int]) -> Config:
    """The config of choice numbers, without the knobs that are not there."""
    kept: list[int] = []
    for knob, own in zip(space, space.conditions, strict=True):
        there = all(kept[parent] in allowed for parent, allowed in own)
        kept.append(int(codes[knob.name]) if there else -1)
    return Config({knob.name: knob.choices[code] for knob, code in zip(space, kept, strict=True) if code >= 0})
