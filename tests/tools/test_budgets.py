import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.budgets import FunctionNode, check, fingerprint, function_lines, main, sources


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"pliant/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def problems(root: Path, files: Mapping[str, str]) -> list[tuple[str, int, str]]:
    return check(tree(root, files))[0]


def function(text: str) -> FunctionNode:
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


LONG = "x = 1\n"


@pytest.mark.parametrize(
    ("path", "lines", "limit"),
    [
        ("pliant/nets/a.py", 400, None),
        ("pliant/nets/a.py", 401, 400),
        ("runtime/pliant_runtime/a.py", 401, 400),
        ("pliant/elastic/recipes.py", 401, 400),
        ("pliant/elastic/module.py", 800, None),
        ("pliant/graph/a.py", 801, 800),
        ("bench/a.py", 500, None),
        ("tests/a.py", 801, 800),
    ],
)
def test_file_length(tmp_path: Path, path: str, lines: int, limit: int | None) -> None:
    expected = [] if limit is None else [(path, limit, f"{lines} lines, at most {limit}")]
    assert problems(tmp_path, {path: LONG * lines}) == expected


@pytest.mark.parametrize(("lines", "bad"), [(79, False), (80, True)])
def test_the_map_stays_a_map(tmp_path: Path, lines: int, bad: bool) -> None:
    found = problems(tmp_path, {"pliant/__init__.py": LONG * lines})
    assert [path for path, _, _ in found] == (["pliant/__init__.py"] if bad else [])


def test_folder_depth(tmp_path: Path) -> None:
    found = problems(tmp_path, {"pliant/a/b/c.py": "", "runtime/pliant_runtime/a/b/c.py": "", "pliant/a/b/c/d.py": ""})
    assert found == [("pliant/a/b/c/d.py", 1, "lies 3 folders below its package, at most 2")]


def test_function_length_leaves_out_the_docstring(tmp_path: Path) -> None:
    body = "".join(f"    x = {n}\n" for n in range(80))
    files = {
        "tests/a.py": f'def ok():\n    """One.\n\n    Three.\n    """\n{body[: -len("    x = 79")]}',
        "tests/b.py": f"@decorated\ndef long():\n{body}",
    }
    assert problems(tmp_path, files) == [("tests/b.py", 2, "long has 81 lines, at most 80")]
    assert function_lines(function('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n')) == 2


@pytest.mark.parametrize(
    ("signature", "problem"),
    [
        ("def f(a, b, *, c, d, e, f, g, h): ...", None),
        ("def f(a, b, *, c, d, e, f, g, h, i): ...", "f has 9 parameters, at most 8"),
        ("def f(a, b, c): ...", "f takes 3 positional parameters, keyword-only after 2"),
        ("def f(a, b, *c): ...", None),
        ("def _f(a, b, c): ...", None),
        ("class A:\n    def f(self, a, b): ...", None),
        ("class A:\n    def f(self, a, b, c): ...", "f takes 3 positional parameters, keyword-only after 2"),
        ("class A:\n    def forward(self, a, b, c): ...", None),
        ("class _A:\n    def f(self, a, b, c): ...", None),
        ("def f():\n    def g(a, b, c): ...", None),
        ("if True:\n    def f(a, b, c): ...", "f takes 3 positional parameters, keyword-only after 2"),
    ],
)
def test_public_signatures(tmp_path: Path, signature: str, problem: str | None) -> None:
    files = {
        "pliant/nets/a.py": signature,
        "pliant/nets/__init__.py": "from pliant.nets.a import A as A\nfrom pliant.nets.a import f, g\n",
        "tools/a.py": "def f(a, b, c): ...",
    }
    assert [text for _, _, text in problems(tmp_path, files)] == ([] if problem is None else [problem])


def test_what_a_room_keeps_to_itself_may_be_called_by_position(tmp_path: Path) -> None:
    signature = "def f(a, b, c): ...\ndef g(a, b, c, d, e, f, g, h, i): ...\n"
    files = {
        "pliant/nets/__init__.py": "def open(a, b, c): ...\n",
        "pliant/nets/a.py": signature,
        "runtime/pliant_runtime/__init__.py": "from pliant_runtime.b import f as f",
        "runtime/pliant_runtime/b.py": "def f(a, b, c): ...",
    }
    found = problems(tmp_path, files)
    assert [(path, text.partition(" ")[0]) for path, _, text in found] == [
        ("pliant/nets/__init__.py", "open"),
        ("pliant/nets/a.py", "g"),
        ("runtime/pliant_runtime/b.py", "f"),
    ]


COPY = "def {name}({x}, y):\n    {t} = {x} + y\n    if {t} > {n}:\n        {t} = 0\n    return {t}\n"


def test_copies_are_found_across_files_whatever_the_local_names(tmp_path: Path) -> None:
    files = {
        "pliant/nets/a.py": COPY.format(name="one", x="x", t="t", n=1),
        "pliant/graph/b.py": '"""Doc."""\n' + COPY.format(name="two", x="left", t="total", n=1),
        "pliant/graph/c.py": COPY.format(name="three", x="x", t="t", n=2),
        "tests/d.py": COPY.format(name="four", x="x", t="t", n=1),
    }
    assert problems(tmp_path, files) == [
        ("pliant/nets/a.py", 1, "one has the same body as two at pliant/graph/b.py:2"),
    ]


def test_a_body_that_swaps_names_is_no_copy() -> None:
    one = function("def f(a, b):\n    c = a - b\n    d = c\n    e = d\n    return e\n")
    two = function("def f(a, b):\n    c = b - a\n    d = c\n    e = d\n    return e\n")
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(function("def f(a):\n    b = a\n    return b\n")) is None


def test_median_and_graph_totals(tmp_path: Path) -> None:
    long_function = "def f{n}():\n" + "    x = 1  # one\n\n" * 6
    files = {
        "pliant/graph/a.py": '"""Doc."""\n\n# comment\nx = (\n    1\n)\n' * 700,
        "pliant/graph/b.py": "x = 1\n" * 800 + '"""Text,\n\n   not code."""\n',
    }
    found, summary = check(tree(tmp_path, files))
    assert "2900 in graph" in summary
    assert [path for path, _, _ in found] == ["pliant/graph/a.py", "pliant/graph/b.py"]
    for number in range(3):
        tree(tmp_path, {f"pliant/graph/c{number}.py": "x = 1\n" * 600})
    tree(tmp_path, {"pliant/nets/a.py": long_function.format(n=1), "bench/a.py": "def g(): ...\n"})
    found, summary = check(tmp_path)
    assert ("pliant/graph", 1, "4700 code lines, must be under 4500") in found
    assert ("pliant", 1, "the median function has 12 lines, must be under 12") in found


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, {"pliant/nets/__init__.py": "def f(a, b, c): ...\n"})
    assert main([str(tmp_path)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first == "pliant/nets/__init__.py:1: f takes 3 positional parameters, keyword-only after 2"
    assert last == "budgets: 1 violation; 2 files, 1 code lines (0 in graph), 1 functions with a median of 1 lines"
    tree(tmp_path, {"pliant/nets/__init__.py": ""})
    assert main([str(tmp_path)]) == 0
    with pytest.raises(ValueError, match="no Python files in pliant or"):
        main([str(tmp_path / "elsewhere")])


def test_generated_folders_do_not_count(tmp_path: Path) -> None:
    tree(tmp_path, {"pliant/core/a.py": "", ".venv/a.py": LONG * 900, "build/b.py": LONG * 900})
    assert [source.path for source in sources(tmp_path)] == ["pliant/__init__.py", "pliant/core/a.py"]
