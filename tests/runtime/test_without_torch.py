"""The runtime on a machine without torch: an environment of its own with `pip install pliant-runtime` and no more.

The environment is made once (about 20 s) and kept in pytest's cache until a file of the runtime changes.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant_runtime import load

RUNTIME = Path(__file__).parents[2] / "runtime"

SCRIPT = """
import importlib.util, json, sys
import numpy
from pliant_runtime import load

assert importlib.util.find_spec("torch") is None, "torch is installed here"
assert importlib.util.find_spec("pliant") is None, "pliant is installed here"
family = load(sys.argv[1])
rows = numpy.load(sys.argv[2])
print(json.dumps({
    "checked": sorted(family.check()),
    "outputs": [family.run(rows, config=entry.config).tolist() for entry in family.entries],
    "classes": family.classify(rows, budget_ms=1e9),
    "imported": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def _sources() -> list[Path]:
    return [RUNTIME / "pyproject.toml", *sorted((RUNTIME / "pliant_runtime").glob("*.py"))]


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the runtime and what it needs."""
    content = b"".join(path.read_bytes() for path in _sources()) + sys.version.encode()
    key = hashlib.sha256(content).hexdigest()[:16]
    cache = request.config.cache if request.config.pluginmanager.has_plugin("cacheprovider") else None
    home = tmp_path_factory.mktemp("environments") if cache is None else cache.mkdir("runtime-environment")
    done = home / key / "done"
    if not done.exists():
        for old in home.iterdir():
            shutil.rmtree(old)
        copied = tmp_path_factory.mktemp("source") / "runtime"
        for path in [*_sources(), RUNTIME / "pliant_runtime" / "py.typed"]:
            target = copied / path.relative_to(RUNTIME)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        subprocess.run([sys.executable, "-m", "venv", str(home / key)], check=True)
        pip = [str(home / key / "bin" / "python"), "-m", "pip", "install", "--quiet", str(copied)]
        installed = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert installed.returncode == 0, installed.stderr
        done.touch()
    return home / key / "bin" / "python"


def _ask(python: Path, *arguments: str) -> Any:
    # -I: neither the environment's variables nor the current folder add anything to what can be imported
    done = subprocess.run([str(python), "-I", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_artifacts_run_where_torch_is_not_installed(
    python: Path, original: Path, table: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    rows = table[0][:16]
    np.save(tmp_path / "rows.npy", rows)
    answer = _ask(python, "-c", SCRIPT, str(original), str(tmp_path / "rows.npy"))
    family = load(original)
    assert answer["checked"] == list(range(len(family)))
    for number, outputs in enumerate(answer["outputs"]):
        np.testing.assert_allclose(np.array(outputs), family.run(rows, entry=number), rtol=1e-4, atol=1e-5)
    assert answer["classes"] == family.classify(rows)
    assert not {"torch", "pliant", "onnx"} & set(answer["imported"])
    info = _ask(python, "-m", "pliant_runtime", str(original), "--info", "--json")
    assert info["sha256"] == family.digest
