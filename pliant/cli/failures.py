"""From exceptions to one line for people and one JSON object for programs."""

import json
import os
import sys
from typing import Any

import typer

from pliant.core import PliantError

CLICK_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""The base of usage errors; typer brings its own copy of click, whose name is private."""

USAGE, UNEXPECTED, INTERRUPTED = 2, 1, 130


def one_line(text: str) -> str:
    """The text without line breaks and without runs of spaces."""
    return " ".join(text.split())


def _artifact_error(error: BaseException) -> bool:
    runtime = sys.modules.get("pliant_runtime")  # an ArtifactError can only come from a runtime that was imported
    return runtime is not None and isinstance(error, getattr(runtime, "ArtifactError", ()))


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell about an exception: the sentence and the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted; what is done is kept, give the same command again to go on", INTERRUPTED
    if isinstance(error, CLICK_ERROR):
        return one_line(str(error.format_message())) + " (--help shows the options)", USAGE  # type: ignore[attr-defined]
    if isinstance(error, ModuleNotFoundError):
        return f"{one_line(str(error))}; install it, or check the spelling and the working folder", USAGE
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}", USAGE
    if isinstance(error, ValueError | TypeError | PliantError | OSError) or _artifact_error(error):
        return one_line(str(error)) or type(error).__name__, USAGE
    return f"unexpected {type(error).__name__}: {one_line(str(error))} (--debug shows where)", UNEXPECTED


def debugging(argv: list[str]) -> bool:
    """Whether tracebacks are wanted."""
    return "--debug" in argv or os.environ.get("PLIANT_DEBUG", "") not in ("", "0")


def report_failure(error: BaseException, *, as_json: bool, stdout: Any) -> int:
    """Writes the one line to stderr and, on request, `{"error": ...}` to `stdout`; returns the exit code."""
    message, code = explain(error)
    print(f"pliant: error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}), file=stdout)
    return code
