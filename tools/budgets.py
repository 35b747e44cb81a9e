"""The size budgets of the code base, checked: `python -m tools.budgets [ROOT]` prints `file:line: what` and exits 1.

A budget is raised only by editing the constants below, in a commit that says why.
"""

import argparse
import ast
import copy
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE_LINES = 800
LEAF_LINES = 400
FUNCTION_LINES = 80
MEDIAN_FUNCTION_LINES = 12
PUBLIC_PARAMETERS = 8
POSITIONAL_PARAMETERS = 2
FOLDER_DEPTH = 2
GRAPH_CODE_LINES = 4500
MAP_LINES = 80
COPY_STATEMENTS = 4

PACKAGES = ("pliant", "runtime/pliant_runtime")
OTHERS = ("bench", "tools", "tests", "examples")
INNER_ROOMS = ("core", "graph", "elastic", "diagram", "flow")
"""Rooms whose files are machinery, not one technique each: they are bound by FILE_LINES, not by LEAF_LINES."""
GIVEN_SIGNATURES = frozenset({"forward", "backward", "setup_context", "step"})
"""Methods whose positional parameters somebody else fixes: torch (the first three), the recipe contract (`step`)."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Violation = tuple[str, int, str]


@dataclass
class Source:
    """One parsed file. `path` is relative to the root, with forward slashes."""

    path: str
    text: str
    tree: ast.Module
    functions: list[tuple[FunctionNode, str | None]] = field(default_factory=list)
    """Every function with the public name at module level it belongs to: its own or its class's; None for private ones
    and those inside functions."""

    @property
    def in_package(self) -> bool:
        """Whether users get this file."""
        return self.path.startswith(tuple(f"{package}/" for package in PACKAGES))

    @property
    def lines(self) -> int:
        """Physical lines."""
        return len(self.text.splitlines())


def sources(root: Path) -> Iterator[Source]:
    """Every Python file of the project below `root`, parsed."""
    for folder in (*PACKAGES, *OTHERS):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text()
            tree = ast.parse(text, filename=str(path))
            yield Source(path.relative_to(root).as_posix(), text, tree, list(_functions(tree, "")))


def _functions(node: ast.AST, owner: str | None) -> Iterator[tuple[FunctionNode, str | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode | ast.ClassDef):
            name = None if owner is None or child.name.startswith("_") else owner or child.name
            if isinstance(child, FunctionNode):
                yield child, name
                name = None
            yield from _functions(child, name)
        else:
            yield from _functions(child, owner)


def exported(files: list[Source]) -> set[tuple[str, str]]:
    """File and name of everything a package hands to its users: what an `__init__.py` declares or imports."""
    found: set[tuple[str, str]] = set()
    for source in files:
        if not source.path.endswith("/__init__.py") or not source.in_package:
            continue
        found |= {(source.path, owner) for _, owner in source.functions if owner is not None}
        base = "runtime/" if source.path.startswith("runtime/") else ""
        for node in source.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                module = base + node.module.replace(".", "/")
                found |= {(f"{module}{end}", alias.name) for alias in node.names for end in (".py", "/__init__.py")}
    return found


def function_lines(node: FunctionNode) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        docstring = node.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def code_lines(source: Source) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in nothing:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def _is_leaf(path: str) -> bool:
    room = path.split("/")[1].removesuffix(".py")
    return path.startswith("runtime/") or room not in INNER_ROOMS or path.startswith("pliant/elastic/recipes")


def check_files(source: Source) -> Iterator[Violation]:
    """File length and folder depth."""
    limit = LEAF_LINES if source.in_package and _is_leaf(source.path) else FILE_LINES
    if source.lines > limit:
        yield source.path, limit, f"{source.lines} lines, at most {limit}"
    if source.path == "pliant/__init__.py" and source.lines >= MAP_LINES:
        yield source.path, MAP_LINES, f"the map has {source.lines} lines, must stay under {MAP_LINES}"
    depth = source.path.removeprefix("runtime/").count("/") - 1
    if depth > FOLDER_DEPTH:
        yield source.path, 1, f"lies {depth} folders below its package, at most {FOLDER_DEPTH}"


def check_functions(source: Source, public: set[tuple[str, str]]) -> Iterator[Violation]:
    """Length of every function, parameters of those without an underscore, and how those in `public` are called."""
    for node, owner in source.functions:
        lines = function_lines(node)
        if lines > FUNCTION_LINES:
            yield source.path, node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"
        if owner is None or not source.in_package:
            continue
        positional, total = _parameters(node)
        if total > PUBLIC_PARAMETERS:
            yield source.path, node.lineno, f"{node.name} has {total} parameters, at most {PUBLIC_PARAMETERS}"
        if positional > POSITIONAL_PARAMETERS and (source.path, owner) in public and node.name not in GIVEN_SIGNATURES:
            problem = f"takes {positional} positional parameters, keyword-only after {POSITIONAL_PARAMETERS}"
            yield source.path, node.lineno, f"{node.name} {problem}"


def _parameters(node: FunctionNode) -> tuple[int, int]:
    positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    if positional[:1] in (["self"], ["cls"], ["ctx"]):
        del positional[0]
    return len(positional), len(positional) + len(node.args.kwonlyargs)


class _Anonymous(ast.NodeTransformer):
    """Local names by order of appearance, annotations and docstrings gone: what a copy with other names shares."""

    def __init__(self, local: set[str]) -> None:
        self.local = local
        self.names: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.local:
            node.id = self.names.setdefault(node.id, f"v{len(self.names)}")
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg, node.annotation = self.names.setdefault(node.arg, f"v{len(self.names)}"), None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def fingerprint(node: FunctionNode) -> str | None:
    """The body up to the choice of local names; None for bodies too small to count as copies."""
    node = copy.deepcopy(node)
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    if sum(isinstance(child, ast.stmt) for statement in node.body for child in ast.walk(statement)) < COPY_STATEMENTS:
        return None
    names = [child for child in ast.walk(node) if isinstance(child, ast.Name)]
    local = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    local |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
    anonymous = _Anonymous(local)
    anonymous.visit(node.args)
    return "\n".join(ast.dump(anonymous.visit(statement)) for statement in node.body)


def check_copies(files: list[Source]) -> Iterator[Violation]:
    """Function bodies that occur twice. Tests may repeat themselves."""
    seen: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for source in files:
        if source.path.startswith("tests/"):
            continue
        for node, _ in source.functions:
            if (mark := fingerprint(node)) is not None:
                seen[mark].append((source.path, node.lineno, node.name))
    for first, *rest in seen.values():
        for path, line, name in rest:
            yield path, line, f"{name} has the same body as {first[2]} at {first[0]}:{first[1]}"


def check(root: Path) -> tuple[list[Violation], str]:
    """Every violation below `root`, and one line with the totals.

    Raises:
        ValueError: `root` holds none of the packages.
    """
    files = list(sources(root))
    package = [source for source in files if source.in_package]
    if not package:
        raise ValueError(f"no Python files in {' or '.join(PACKAGES)} below {root}")
    public = exported(files)
    found = [violation for source in files for violation in (*check_files(source), *check_functions(source, public))]
    found += check_copies(files)
    lengths = [function_lines(node) for source in package for node, _ in source.functions]
    median = statistics.median(lengths) if lengths else 0
    if median >= MEDIAN_FUNCTION_LINES:
        found.append(("pliant", 1, f"the median function has {median:g} lines, must be under {MEDIAN_FUNCTION_LINES}"))
    graph = sum(code_lines(source) for source in package if source.path.startswith("pliant/graph/"))
    if graph >= GRAPH_CODE_LINES:
        found.append(("pliant/graph", 1, f"{graph} code lines, must be under {GRAPH_CODE_LINES}"))
    total = sum(code_lines(source) for source in package)
    summary = (
        f"{len(package)} files, {total} code lines ({graph} in graph), "
        f"{len(lengths)} functions with a median of {median:g} lines"
    )
    return sorted(found), summary


def main(arguments: list[str] | None = None) -> int:
    """Print the violations; the exit status is 1 when there are any."""
    parser = argparse.ArgumentParser(prog="python -m tools.budgets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path())
    found, summary = check(parser.parse_args(arguments).root)
    for path, line, problem in found:
        print(f"{path}:{line}: {problem}")
    print(f"budgets: {len(found)} violation{'' if len(found) == 1 else 's'}; {summary}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
