import errno
import io
import json

import pytest
import typer

from pliant.cli.failures import explain, report_failure
from pliant.core import PliantError


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (ValueError("keep must be in (0, 1],\n  got 2"), "keep must be in (0, 1], got 2", 2),
        (PliantError("no search yet", where="runs/a", fix="search"), "runs/a: no search yet. search", 2),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "x/y: Permission denied", 2),
        (typer.BadParameter("not a number"), "not a number", 2),
        (ModuleNotFoundError("No module named 'a'"), "install it", 2),
        (KeyboardInterrupt(), "give the same command again", 130),
        (typer.Abort(), "give the same command again", 130),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError", 1),
    ],
)
def test_one_line_and_a_code(error: BaseException, said: str, code: int) -> None:
    message, got = explain(error)
    assert said in message
    assert "\n" not in message
    assert got == code


def test_json_errors_are_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    assert report_failure(ValueError("a\nb"), as_json=True, stdout=out) == 2
    assert json.loads(out.getvalue()) == {"error": "a b"}
    assert capsys.readouterr().err == "pliant: error: a b\n"
