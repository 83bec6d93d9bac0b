"""ARCHITECTURE.md and CONTRIBUTING.md are true, as far as a test can tell, and the house keeps its rules."""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nestcoder", "harvest", "cache", "transcoder", "train", "evaluate", "finetune", "common")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/python.md", "docs/log.md", "docs/kinds.md")

MOST_MODULES = 14
MOST_PACKED = 5
"""Assignments that pack unrelated values into one line (``a, b = f(), g()``), in all packages."""

MOST_LINES = 300
LONGER_FILES: dict[str, str] = {}
"""Files over the limit, by the reason. Nothing is added here without one that will last."""

MOST_FUNCTION_LINES = 60
LONGER_FUNCTIONS: dict[str, str] = {}
"""The same for functions."""

VAGUE_NAMES = frozenset({
    "part", "side", "whole", "place", "one", "at", "of", "theirs", "figures", "some", "every", "least", "few", "said",
    "held", "where", "together", "judge", "around", "slope", "other", "asked", "promise", "job", "ahead", "behind",
})  # fmt: skip
"""Words that say nothing of what a variable, function or class is. The field has a noun: row, column, chunk, ..."""
VAGUE_BUT_KEPT = {
    "common/errors.py": {"where"},
    "train/config.py": {"every", "side"},
    "evaluate/report/samples.py": {"at"},
    "bench/support/attribution_scores.py": {"place"},
    "bench/support/read_saelens.py": {"one"},
}
"""``where`` is the location that an error names; then come names of settings and of entries in a report's JSON, and two
scripts that run in other tools' environments."""


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_layers_are_those_that_the_linter_holds() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (item for item in settings["tool"]["importlinter"]["contracts"] if item["type"] == "layers")
    shown = " > ".join(contract["layers"])
    assert f"`{shown}`" in ARCHITECTURE
    assert f"`{shown}`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_tree_names_every_package_and_folder() -> None:
    (tree,) = re.findall(r"```\n(nestcoder/ .*?)```", ARCHITECTURE, re.DOTALL)
    shown: set[str] = set()
    trail: list[str] = []
    for line in tree.splitlines():
        found = re.match(r"( *)([a-z_]+)/ ", line)
        assert found, line
        trail = [*trail[: len(found[1]) // 2], found[2]]
        shown.add("/".join(trail))
    there = {str(path.parent.relative_to(ROOT)) for path in modules()}
    assert shown == there


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_the_documents_name_are_there(document: str) -> None:
    named = re.findall(r"`([a-z_./]+\.(?:py|md|yaml|toml|sh))`", (ROOT / document).read_text())
    missing = {name for name in named if "/" in name and not (ROOT / name).exists()}
    assert not missing


def test_no_folder_is_crowded() -> None:
    counts: dict[str, int] = {}
    for path in modules():
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    crowded = {name: count for name, count in counts.items() if count > MOST_MODULES}
    assert not crowded


def imports_of(path: Path) -> Iterator[str]:
    """Our own modules that a module imports, anywhere in it and for types alone, too."""
    names = {name_of(module) for module in modules()}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([name for name in inner if name in names] or ([node.module] if node.module in names else []))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name_of(path): set(imports_of(path)) for path in modules()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in finished:
            return
        for imported in sorted(graph[name]):
            visit(imported, (*trail, name))
        finished.add(name)

    for name in graph:
        visit(name, ())


def packed_assignments(path: Path) -> Iterator[int]:
    """Lines that assign a tuple of expressions to a tuple of names; ``a, b = b, a`` swaps, and is none."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        (target,) = node.targets if len(node.targets) == 1 else (None,)
        if isinstance(target, ast.Tuple):
            given = {ast.unparse(item) for item in node.value.elts}
            taken = {ast.unparse(item) for item in target.elts}
            if not given & taken:
                yield node.lineno


def test_few_lines_assign_unrelated_values() -> None:
    packed = [f"{path.relative_to(ROOT)}:{line}" for path in modules() for line in packed_assignments(path)]
    assert len(packed) <= MOST_PACKED, f"{len(packed)}:\n" + "\n".join(packed)


def test_files_are_short() -> None:
    longer = {str(path.relative_to(ROOT)) for path in modules() if len(path.read_text().splitlines()) > MOST_LINES}
    assert not longer - LONGER_FILES.keys(), f"over {MOST_LINES} lines"


def test_functions_are_short() -> None:
    longer = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    }
    assert not longer - LONGER_FUNCTIONS.keys(), f"over {MOST_FUNCTION_LINES} lines"


def test_every_module_has_a_test_of_its_name() -> None:
    """Anywhere among its package's tests; in the same folder where another module of the package has its name."""
    inside = [path.relative_to(ROOT) for path in modules() if path.name != "__init__.py"]
    names = Counter((path.parts[0], path.stem) for path in inside)
    untested: set[str] = set()
    for path in inside:
        test = f"test_{path.stem.strip('_')}.py"
        is_alone = names[path.parts[0], path.stem] == 1
        found = (
            any((ROOT / "tests" / path.parts[0]).rglob(test))
            if is_alone
            else (ROOT / "tests" / path.parent / test).is_file()
        )
        if not found:
            untested.add(str(path))
    assert not untested, "\n".join(sorted(untested))


def test_packages_are_marked_by_a_docstring_alone() -> None:
    for path in modules():
        if path.name == "__init__.py" and path.parent.name != "nestcoder":
            body = tree_of(path).body
            assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), path


def public_definitions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield inside + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{node.name}.")


def test_everything_public_has_a_docstring() -> None:
    """A method of a class for one kind of dictionary need not repeat the docstring of its interface."""
    interfaces = ("Kind", "RunState", "InModel", "Subject")
    shared = {
        method.name
        for path in modules()
        for name, node in public_definitions(tree_of(path))
        if name in interfaces
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        for name, node in public_definitions(tree_of(path))
        if not ast.get_docstring(node) and node.name not in shared
    ]
    assert not missing, "\n".join(missing)


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, attribute, parameter, function and class that a module makes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


def test_names_say_what_they_stand_for() -> None:
    others = (path for room in ("tests", "bench", "models") for path in sorted((ROOT / room).rglob("*.py")))
    vague = [
        f"{module}:{line}: {name}"
        for path in (*modules(), *others)
        for module in [str(path.relative_to(ROOT))]
        for line, name in bound_names(tree_of(path))
        if name.lower().strip("_") in VAGUE_NAMES - VAGUE_BUT_KEPT.get(module, set())
    ]
    assert not vague, "\n".join(vague)
