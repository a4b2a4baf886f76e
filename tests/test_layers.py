"""Who may import whom, and a few house rules that a parser can hold."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED: dict[str, set[str]] = {
    "storage": set(),
    "data": {"storage"},
    "models": {"storage"},
    "training": {"storage"},
    "reports": {"storage"},
    "tasks": {"data", "storage"},
    "masks": {"models", "storage"},
    "weight_classes": {"masks", "models", "storage"},
    "attribution": {"masks", "models", "tasks", "training", "storage"},
    "relearning": {"attribution", "masks", "models", "tasks", "training", "storage"},
}
ALLOWED["experiments"] = set(ALLOWED)
ALLOWED["scripts"] = ALLOWED["benchmarks"] = set(ALLOWED)
"""Scripts and benchmarks are read from top to bottom, and imported by nobody."""
EDGE_DOORS = {"circuitcut.masks.edges.sites", "circuitcut.masks.edges.gating"}
"""By these alone the edge engine is entered."""
PACKAGES = list(ALLOWED)
FILES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
PICKLING_CALLS = {("torch", "save"), ("torch", "load")}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def _dotted(path: Path) -> str:
    return ".".join(["circuitcut", *path.relative_to(ROOT).with_suffix("").parts])


def _our_package(name: str) -> str | None:
    """`masks` of `circuitcut.masks.gating`; None for other people's modules."""
    first, _, rest = name.partition(".")
    return rest.split(".")[0] if first == "circuitcut" else None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_layer_may(package: str):
    allowed = ALLOWED[package] | {package}
    if package == "scripts":
        allowed -= {"scripts", "benchmarks"}  # the table of commands aside, see below
    for path in sorted((ROOT / package).rglob("*.py")):
        ours = {found for name in _imports(path) if (found := _our_package(name))}
        ours &= set(PACKAGES)
        if path.name == "command_line.py":
            ours -= {"scripts"}
        assert ours <= allowed, f"{path.name} imports {sorted(ours - allowed)}"


def test_no_package_goes_by_its_bare_name():
    """`from masks ...` would load every class a second time."""
    for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]:
        bare = {name.split(".")[0] for name in _imports(path)} & set(PACKAGES)
        assert not bare, f"{path}: write circuitcut.{min(bare)}"


def test_the_edge_engine_is_entered_by_its_doors_alone():
    for path in FILES:
        if path.parent == ROOT / "masks" / "edges":
            continue
        inside = {n for n in _imports(path) if n.startswith("circuitcut.masks.edges.")}
        modules = {".".join(name.split(".")[:4]) for name in inside}
        assert modules <= EDGE_DOORS, f"{path} imports {sorted(modules - EDGE_DOORS)}"


def test_a_room_holds_about_sixteen_files():
    """At most 18 here, and one that a user adds to a checkout."""
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 19, f"{folder} holds {len(files)} files"


def test_nothing_imports_the_tests():
    for path in FILES:
        assert "tests" not in {name.split(".")[0] for name in _imports(path)}, path


def test_the_packages_have_no_cycle():
    below = {name: allowed - {name} for name, allowed in ALLOWED.items()}
    assert set(TopologicalSorter(below).static_order()) == set(ALLOWED)


def test_the_modules_have_no_cycle():
    modules = {_dotted(path) for path in FILES}
    graph = {_dotted(path): _imports(path) & modules for path in FILES}
    assert set(TopologicalSorter(graph).static_order()) == modules


@pytest.mark.parametrize("package", PACKAGES)
def test_every_init_file_is_empty(package: str):
    assert (ROOT / package / "__init__.py").read_text() == ""


def test_every_module_opens_with_a_docstring():
    for path in FILES:
        if path.name != "__init__.py":
            assert ast.get_docstring(_tree(path)), path


def test_flags_are_parsed_in_one_place_alone():
    parsers = {"argparse", "transformers.HfArgumentParser"}
    users = {_dotted(path) for path in FILES if _imports(path) & parsers}
    assert users == {"circuitcut.training.config"}


def test_nothing_is_pickled():
    for path in FILES:
        used = {name.split(".")[0] for name in _imports(path)}
        assert not used & PICKLES, path
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = (node.value.id, node.attr)
                assert call not in PICKLING_CALLS, f"{path}, line {node.lineno}"


def test_no_remote_code_is_trusted():
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", f"{path}, line {node.lineno}"
