"""Trials: the history of one search as an Optuna study, safe against being killed at any moment."""

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.core import Config, Knob, PliantError, Space, read_json, write_json
from pliant.search.front import Axis, Point
from pliant.search.outcome import FAILED, FINISHED, STOPPED, Outcome

if TYPE_CHECKING:
    import optuna

if sys.platform != "win32":  # there two searches in one folder at once are on their own
    import fcntl


class Trials:
    """What was measured, in order, in a study that Optuna's own tools read (`optuna-dashboard trials.journal`).

    Every finished trial is one line of the journal. It is written when all its objectives are known, so that a killed
    search leaves whole trials only.

    Args:
        study: where they are kept.
        space: what is searched.
        axes: the objectives, in the order of the study's values.
    """

    def __init__(self, study: "optuna.Study", space: Space, axes: Sequence[Axis]) -> None:
        self._study, self._space, self._axes = study, space, tuple(axes)

    def points(self) -> list[Point]:
        """Every finished trial, oldest first."""
        return [outcome.point for outcome in self.history() if outcome.status == FINISHED]

    def history(self) -> list[Outcome]:
        """Every trial that ended, oldest first; without failures that shall be tried again."""
        with quiet():
            trials = self._study.get_trials(deepcopy=False)
        found = [
            outcome_of(t, self._space, [a.key for a in self._axes]) for t in sorted(trials, key=lambda t: t.number)
        ]
        return [outcome for outcome in found if outcome is not None]

    def add(self, ended: Point | Outcome, *, again: bool = False) -> None:
        """Write one trial that ended.

        Args:
            ended: a point, or how it ended.
            again: whether a search that goes on later tries it again (failures).
        """
        if isinstance(ended, Point):
            ended = Outcome(ended.config, FINISHED, dict(ended.values), dict(ended.spread))
        attributes = {"spread": dict(ended.spread), "rungs": list(ended.rungs), "seconds": ended.seconds}
        if ended.status == FAILED:
            attributes |= {"problem": ended.problem, "again": again}
        with quiet() as optuna:
            states = optuna.trial.TrialState
            trial = optuna.create_trial(
                state={FINISHED: states.COMPLETE, STOPPED: states.PRUNED, FAILED: states.FAIL}[ended.status],
                values=[ended.values[axis.key] for axis in self._axes] if ended.status == FINISHED else None,
                params={name: _plain(value) for name, value in ended.config.items()},
                distributions={name: _distribution(optuna, self._space[name]) for name in ended.config},
                user_attrs={key: value for key, value in attributes.items() if value},
            )
            self._study.add_trial(trial)


def outcome_of(trial: "optuna.trial.FrozenTrial", space: Space | None, keys: Sequence[str]) -> Outcome | None:
    """How a trial of the journal ended; None for what is tried again.

    Args:
        trial: of the study.
        space: what was searched; None takes the parameters as they were written.
        keys: of the objectives.
    """
    told = trial.user_attrs
    if space is None:
        config = Config(trial.params)
    else:
        config = space.validate({name: _own(space[name], value) for name, value in trial.params.items()})
    rungs, seconds = tuple(told.get("rungs", ())), float(told.get("seconds", 0.0))
    if trial.state.name == "COMPLETE":
        values = dict(zip(keys, trial.values, strict=True))
        return Outcome(config, FINISHED, values, dict(told.get("spread", {})), rungs, seconds=seconds)
    if trial.state.name == "PRUNED":
        return Outcome(config, STOPPED, dict(rungs[-1]), rungs=rungs, seconds=seconds)
    if trial.state.name == "FAIL" and not told.get("again"):
        return Outcome(config, FAILED, rungs=rungs, problem=str(told.get("problem", "")), seconds=seconds)
    return None


def _distribution(optuna: Any, knob: Knob) -> Any:
    if knob.scale and isinstance(knob.choices[0], float):
        return optuna.distributions.FloatDistribution(knob.choices[0], knob.choices[-1])
    if knob.scale:
        return optuna.distributions.IntDistribution(knob.choices[0], knob.choices[-1])
    return optuna.distributions.CategoricalDistribution([_plain(choice) for choice in knob.choices])


def _plain(value: Any) -> Any:
    """A choice as Optuna keeps it: tuples as text."""
    return json.dumps(value) if isinstance(value, tuple) else value


def _own(knob: Knob, value: Any) -> Any:
    """The inverse of `_plain`."""
    return next((choice for choice in knob.choices if isinstance(choice, tuple) and _plain(choice) == value), value)


def read_history(run: Path) -> list[Outcome]:
    """How the trials of the last search in a run folder ended, oldest first; empty where there was none.

    Raises:
        PliantError: the journal is damaged.
    """
    path = run / "trials.journal"
    if not path.exists():
        return []
    with quiet() as optuna:
        storage = _journal(optuna, path)
        studies = storage.get_all_studies()
        if not studies:
            return []
        last = max(studies, key=lambda study: study._study_id)
        keys = last.study_name.partition(", seed ")[0].split("+")
        trials = storage.get_all_trials(last._study_id, deepcopy=False)
    space = Space.from_dict(read_json(run / "space.json")) if (run / "space.json").exists() else None
    found = [outcome_of(trial, space, keys) for trial in sorted(trials, key=lambda trial: trial.number)]
    return [outcome for outcome in found if outcome is not None]


def open_trials(run: Path | None, name: str, space: Space, axes: Sequence[Axis]) -> Trials:
    """The trials called `name`, new or as they were left.

    Args:
        run: the run folder; None keeps everything in memory.
        name: equal only for searches that would measure the same (network, data, objectives, hardware, seed).
        space: what is searched.
        axes: the objectives.

    Raises:
        PliantError: the journal is damaged.
    """
    with quiet() as optuna:
        storage: Any = optuna.storages.InMemoryStorage()
        if run is not None:
            path = run / "trials.journal"
            _mend(path)
            storage = _journal(optuna, path)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=0),  # never asked; the default one would import more
            directions=["maximize" if axis.maximise else "minimize" for axis in axes],
        )
    return Trials(study, space, axes)


def _journal(optuna: Any, path: Path) -> Any:
    journal = optuna.storages.journal
    try:
        return journal.JournalStorage(journal.JournalFileBackend(str(path)))
    except (ValueError, KeyError, OSError) as error:
        fix = "remove it (measurements are kept apart) or choose another run folder"
        raise PliantError(f"the journal of trials is damaged ({error})", where=str(path), fix=fix) from error


def _mend(path: Path) -> None:
    """Drop what a killed process left: half a line at the end, and Optuna's lock, which nobody else can hold now."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def check_run(run: Path, space: Space, model: Mapping[str, Any]) -> None:
    """Make the folder, or make sure that it belongs to this network.

    Args:
        run: the folder.
        space: written to `space.json` where there is none.
        model: `{"name": ..., "tensors": {name: shape}}`; kept in `config.json` under "search", beside what training
            keeps there.

    Raises:
        PliantError: the folder belongs to another network, or cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PliantError(f"cannot make the run folder ({error.strerror})", where=str(run)) from error
    fix = "choose another run folder"
    file = run / "space.json"
    if not file.exists():
        write_json(file, space.to_dict())
    elif read_json(file) != space.to_dict():
        raise PliantError("this run folder belongs to a network with another space", where=str(file), fix=fix)
    file = run / "config.json"
    config = read_json(file) if file.exists() else {"model": None}
    if not isinstance(config, dict):
        raise PliantError("not a JSON object", where=str(file), fix=fix)
    tensors, trained = model["tensors"], config.get("train", {}).get("parameters", {})
    reshaped = [name for name, shape in trained.items() if tensors.get(name, shape) != shape]
    if config.get("search", model) != model or reshaped:
        raise PliantError("this run folder belongs to another network", where=str(file), fix=fix)
    if "search" not in config:
        write_json(file, {**config, "search": model})


@contextmanager
def only_one(run: Path) -> Iterator[list[int]]:
    """Keep other searches out of a folder; the system lets go of the lock even when the process is killed.

    Gives the open files that hold it, which a forked process must close, or it holds it too.

    Raises:
        PliantError: another search is running there.
    """
    if sys.platform == "win32":
        yield []
        return
    with (run / ".search.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PliantError("another search is running in this folder", where=str(run), fix="wait for it") from error
        yield [file.fileno()]


@contextmanager
def quiet() -> Iterator[Any]:
    """Optuna, imported only now, without its log lines and its notes about experimental parts."""
    import optuna  # a tenth of a second and SQLAlchemy, which reading a front does not need

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(verbosity)
