"""How a search measures and proposes."""

from dataclasses import dataclass, field

from pliant.search.searchers import Proposer, Ridge


@dataclass(frozen=True)
class Rungs:
    """Cheap looks before the whole validation split: only the promising are judged on more of it.

    Asynchronous successive halving without waiting (Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning" <https://arxiv.org/abs/1810.05934>): a sub-network goes on when its non-domination rank is among the best
    share of all that stood on this rung before it.

    Args:
        batches: how many validation batches each rung looks at, growing; all of them come after the last.
        keep: the share that goes on.

    Raises:
        ValueError: no rungs, numbers that do not grow from 1, or a share outside of 0 to 1.
    """

    batches: tuple[int, ...] = (2,)
    keep: float = 0.5

    def __post_init__(self) -> None:
        grows = all(a < b for a, b in zip((0, *self.batches), self.batches, strict=False))
        if not self.batches or not grows:
            raise ValueError(f"rungs are growing numbers of batches, got {self.batches}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}")


@dataclass(frozen=True)
class SearchSettings:
    """How `search` measures and proposes.

    Args:
        batch_size: samples per forward pass, in calibration and evaluation.
        calibration_batches: training batches that re-estimate BatchNorm of each sub-network.
        val_limit: how many validation samples to judge by (a random part, the same for all); None for all.
        output: which field or key of the network's output is judged; `logits` are found without.
        proposer: what chooses the next sub-network: `Ridge()`, `Random()`, `Nsga2()`, ... or your own `Proposer`.
        progress: whether a line per trial goes to stderr; None writes them when stderr is a terminal.
        rungs: cheap looks before the whole validation split; None judges everything on all of it.
        workers: how many processes measure at once, or "ray" for all of a Ray cluster. More than one needs a system
            that can fork. Latencies measured side by side disturb each other; those of the front are measured again
            when the workers are done.
        on_failure: "stop" when an objective raises or gives no finite number, or "skip" to the next sub-network. Both
            keep the failure; a search that was stopped by one tries it again.

    Raises:
        ValueError: a number below 1, or an unknown word.
    """

    batch_size: int = 256
    calibration_batches: int = 16
    val_limit: int | None = None
    output: str | None = None
    proposer: Proposer = field(default_factory=Ridge)
    progress: bool | None = None
    rungs: Rungs | None = None
    workers: int | str = 1
    on_failure: str = "stop"

    def __post_init__(self) -> None:
        for name in ("batch_size", "calibration_batches", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.workers != "ray" and (isinstance(self.workers, bool | str) or self.workers < 1):
            raise ValueError(f"workers are a number of at least 1 or 'ray', got {self.workers!r}")
        if self.on_failure not in ("stop", "skip"):
            raise ValueError(f"on_failure is 'stop' or 'skip', got {self.on_failure!r}")
