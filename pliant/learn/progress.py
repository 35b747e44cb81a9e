"""What a person sees of a training: a bar on stderr, and a Ctrl-C that loses nothing."""

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from pliant.learn.callbacks import State

_EVERY = 0.1  # seconds between two drawings: more often nobody sees, and it costs CPU seconds that are counted


class Bar:
    """A rich progress bar on stderr, or nothing at all.

    Args:
        wanted: None draws when stderr is a terminal.
        steps: length of the bar.
        epochs: for its text.
    """

    def __init__(self, wanted: bool | None, *, steps: int, epochs: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._steps, self._epochs = steps, epochs
        self._bar: Any = None
        self._task: Any = None
        self._val = ""
        self._drawn = 0.0

    def __enter__(self) -> "Bar":
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}")
            columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # No thread of its own: its work would count as CPU seconds of the training.
            self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._task = self._bar.add_task("training", total=self._steps)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def show(self, state: State) -> None:
        """Draw where the training is; cheap when called too often."""
        if self._bar is None:
            return
        if state.val is not None:
            self._val = f"  {state.metric} {state.val:.4g}"
        now = time.monotonic()
        if now - self._drawn >= _EVERY or state.step == self._steps or state.val is not None:
            self._drawn = now
            text = f"epoch {state.epoch + 1}/{self._epochs}  loss {state.loss:.4g}{self._val}"
            self._bar.update(self._task, completed=state.step, description=text, refresh=True)


class Interrupts:
    """While it lasts, the first Ctrl-C sets `asked`; a second one interrupts at once, as ever.

    Only in the main thread, and only where Ctrl-C does what Python does by default.
    """

    def __init__(self, wanted: bool) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._wanted = wanted and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.asked = False

    def __enter__(self) -> "Interrupts":
        if self._wanted:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self._wanted:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
