"""ARCHITECTURE.md and CONTRIBUTING.md are true, as far as a test can tell, and the house keeps its rules."""

import ast
import re
import tomllib
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

TESTED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "cache: settings, layout, journal and chunks by the tests of the format, writer, loader and hostile files": (
        "cache/config.py",
        "cache/format/chunks.py",
        "cache/format/codec.py",
        "cache/format/journal.py",
        "cache/format/layout.py",
        "cache/format/manifest.py",
    ),
    "cache: readers and storage by the tests of the loader and of remote caches, which read every row through them": (
        "cache/open.py",
        "cache/reader.py",
        "cache/remote_reader.py",
        "cache/storage/buffers.py",
        "cache/storage/chunk_copies.py",
        "cache/storage/columns.py",
        "cache/storage/mapping.py",
        "cache/storage/remote_store.py",
        "cache/storage/segment.py",
    ),
    "cache: tools by the tests of verify, info and publish": (
        "cache/tools/index.py",
        "cache/tools/mixing.py",
        "cache/tools/verify_remote.py",
    ),
    "evaluate: settings, measuring and reports by the tests of whole evaluations": (
        "evaluate/config.py",
        "evaluate/features/config.py",
        "evaluate/measure.py",
        "evaluate/metrics/metric.py",
        "evaluate/reference.py",
        "evaluate/report/comparison.py",
        "evaluate/report/plots.py",
        "evaluate/report/samples.py",
        "evaluate/absorption/letters.py",
        "evaluate/metrics/bootstrap.py",
        "evaluate/metrics/catalogue.py",
        "evaluate/metrics/concentration.py",
        "evaluate/metrics/error_sums.py",
        "evaluate/metrics/inputs.py",
        "evaluate/metrics/language_model.py",
        "evaluate/metrics/largest_rows.py",
        "evaluate/report/summary.py",
        "evaluate/report/table_of_runs.py",
        "evaluate/spliced/contexts.py",
        "evaluate/spliced/loss.py",
        "evaluate/token_text.py",
    ),
    "finetune: by the tests of whole fine-tunings": (
        "finetune/config.py",
        "finetune/state.py",
        "finetune/tuned.py",
    ),
    "harvest: by the tests of whole harvests and of each kind of text": (
        "harvest/load.py",
        "harvest/prepare.py",
        "harvest/text/cursor.py",
        "harvest/text/rows.py",
    ),
    "train: by the tests of the step, the loop and the checkpoints; reference.py is itself an oracle of tests": (
        "train/dead/aux_loss.py",
        "train/record/checkpoint_index.py",
        "train/context.py",
        "train/record/held_out_fvu.py",
        "train/record/step_metrics.py",
        "train/arrays/parameters.py",
        "train/reference.py",
        "train/threshold.py",
        "train/kinds/joint_state.py",
        "train/kinds/kind.py",
        "train/kinds/registry.py",
        "train/kinds/single.py",
        "train/kinds/source.py",
        "train/arrays/units.py",
        "train/arrays/workspace.py",
    ),
    "transcoder: by the tests of training and evaluation, which it once belonged to": (
        "transcoder/constants.py",
        "transcoder/decode.py",
        "transcoder/formats/hub.py",
        "transcoder/formats/native.py",
        "transcoder/formats/published.py",
        "transcoder/prefilter.py",
        "transcoder/rules/batchtopk.py",
        "transcoder/rules/registry.py",
        "transcoder/rules/relu.py",
        "transcoder/rules/rule.py",
        "transcoder/rules/threshold.py",
        "transcoder/rules/topk.py",
        "transcoder/transcoder.py",
    ),
}
"""Modules without a test file of their name, by the reason. The list is to become shorter, never longer."""


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
    names = {name_of(other) for other in modules()}
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
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
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


def test_every_module_has_a_test_of_its_name() -> None:
    untested: list[str] = []
    for path in modules():
        inside = path.relative_to(ROOT)
        tests = (ROOT / "tests" / inside.parts[0]).rglob(f"test_{path.stem.strip('_')}.py")
        if path.name != "__init__.py" and not any(tests):
            untested.append(str(inside))
    listed = {name for names in TESTED_ELSEWHERE.values() for name in names}
    assert not set(untested) - listed, "\n".join(sorted(set(untested) - listed))


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


def test_whatever_is_public_has_a_docstring() -> None:
    """A method that a base class or a protocol of the house documents need not say it again."""
    interfaces = ("Rule", "Metric", "Progress", "Documents", "Kind", "RunState", "InModel", "Subject")
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
