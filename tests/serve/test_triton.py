"""An unmodified tritonclient works: health, metadata, inference in JSON and in binary, many at once, reload, errors.

Set $PLIANT_TRITON_PYTHON to an interpreter that has `tritonclient[http]`; by default this one is tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant_runtime import load
from tests.serve.servers import background

PYTHON = os.environ.get("PLIANT_TRITON_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def told(artifact: Path) -> dict[str, Any]:
    if subprocess.run([PYTHON, "-c", "import tritonclient.http"], capture_output=True).returncode:
        pytest.skip("tritonclient is not installed; $PLIANT_TRITON_PYTHON may name another Python that has it")
    script = Path(__file__).with_name("triton_client.py")
    with background(artifact) as address:
        command = [PYTHON, str(script), address.removeprefix("http://"), "Net"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_tritonclient_sees_the_server(told: dict[str, Any]) -> None:
    assert (told["live"], told["ready"], told["model_ready"], told["index"]) == (True, True, True, "READY")
    assert told["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 6]}]
    assert "binary_tensor_data" in told["extensions"]


def test_tritonclient_infers(artifact: Path, told: dict[str, Any]) -> None:
    rows = np.array([[10, 200, 30, 4, 5, 6], [1, 2, 3, 40, 50, 60]], np.uint8)
    want = load(artifact).run(rows, entry=1)
    for form in ("binary", "json"):
        np.testing.assert_allclose(told[form], want, rtol=1e-5)
        assert (told[f"{form}_subnet"], told[f"{form}_id"]) == (1, "a7")
    assert told["async"] == [[2, 3]] * 8


def test_tritonclient_is_told_what_is_wrong(told: dict[str, Any]) -> None:
    status, message = told["refused"]
    assert status == "400"
    assert "takes input" in message
