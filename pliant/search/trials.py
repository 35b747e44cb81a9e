"""Trials: the history of one search as an Optuna study, safe against being killed at any moment."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.core import PliantError, Space, read_json, write_json
from pliant.search.front import Axis, Point

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
        with quiet() as optuna:
            trials = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return [self._point(trial) for trial in sorted(trials, key=lambda trial: trial.number)]

    def _point(self, trial: "optuna.trial.FrozenTrial") -> Point:
        values = {axis.key: value for axis, value in zip(self._axes, trial.values, strict=True)}
        return Point(self._space.validate(trial.params), values, dict(trial.user_attrs.get("spread", {})))

    def add(self, point: Point) -> None:
        """Write one finished trial."""
        with quiet() as optuna:
            choices = {k.name: optuna.distributions.CategoricalDistribution(k.choices) for k in self._space}
            trial = optuna.create_trial(
                values=[point.values[axis.key] for axis in self._axes],
                params=dict(point.config),
                distributions=choices,
                user_attrs={"spread": dict(point.spread)},
            )
            self._study.add_trial(trial)


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
def only_one(run: Path) -> Iterator[None]:
    """Keep other searches out of a folder; the system lets go of the lock even when the process is killed.

    Raises:
        PliantError: another search is running there.
    """
    if sys.platform == "win32":
        yield
        return
    with (run / ".search.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PliantError("another search is running in this folder", where=str(run), fix="wait for it") from error
        yield


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
