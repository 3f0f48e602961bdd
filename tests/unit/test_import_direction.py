"""Imports point down only, without cycles, and torch.distributed stays where it belongs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jigsaw_forecast

PACKAGE = "jigsaw_forecast"
ROOT = Path(jigsaw_forecast.__file__).parent

# from the top down; those in one row may not import each other either
ROWS = (
    ("__main__",),
    ("cli",),
    ("train",),
    ("forecast",),
    ("verify",),
    ("plan",),
    ("plot",),
    ("checkpoint",),
    ("data",),
    ("model",),
    ("state",),
    ("parallel",),
    ("grid", "fields", "recipe", "log"),
    ("errors",),
    ("",),  # the package itself: its version
)
HEIGHT = {name: -row for row, names in enumerate(ROWS) for name in names}

Import = tuple[str, int]  # dotted name, line


def find_imports(source: str) -> Iterator[Import]:
    """Every import of a file, those inside functions and `from package import module` included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part_of(name: str) -> str:
    """`model` for jigsaw_forecast.model.config, empty for the package's own names."""
    pieces = name.split(".")
    part = pieces[1] if len(pieces) > 1 else ""
    return part if part in HEIGHT or (ROOT / part).is_dir() else ""


def find_faults(sources: dict[str, str]) -> list[str]:
    """Upward and sideways imports, unknown parts, and torch.distributed where it is not allowed."""
    faults = []
    for module, source in sources.items():
        part = part_of(module)
        if part not in HEIGHT:
            faults.append(f"{module}: {part} has no place in the order")
            continue
        for name, line in find_imports(source):
            if name.split(".")[0] == PACKAGE:
                target = part_of(name)
                if target != part and HEIGHT.get(target, 1) >= HEIGHT[part]:
                    faults.append(f"{module}:{line} imports {name}")
            elif name.startswith("torch.distributed") and not may_distribute(part, name):
                faults.append(f"{module}:{line} imports {name}")
    return faults


def may_distribute(part: str, name: str) -> bool:
    """torch.distributed is parallel's, its .checkpoint checkpoint's, data-axis wrappers train's."""
    if part == "parallel":
        return True
    if part == "checkpoint":
        return name.startswith("torch.distributed.checkpoint")
    return part == "train" and name.startswith(
        ("torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.tensor")
    )


def find_cycle(sources: dict[str, str]) -> list[str]:
    """Modules of one import cycle, empty where there is none."""
    graph = {
        module: {
            target
            for name, _ in find_imports(source)
            for target in (name, name.rpartition(".")[0])
            if target in sources and target not in (module, PACKAGE)
        }
        for module, source in sources.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if cycle := visit(target, [*trail, module]):
                return cycle
        done.add(module)
        return []

    for module in graph:
        if cycle := visit(module, []):
            return cycle
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Source text by module name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        pieces = path.relative_to(ROOT.parent).with_suffix("").parts
        module = ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)
        found[module] = path.read_text(encoding="utf-8")
    return found


def test_the_walk_sees_the_package(sources: dict[str, str]) -> None:
    expected = {"errors", "fields", "grid", "state", "log", "cli.main", "parallel.launch"}
    assert {f"{PACKAGE}.{name}" for name in expected} <= sources.keys()
    assert len(sources) == len(list(ROOT.rglob("*.py")))


def test_imports_point_down(sources: dict[str, str]) -> None:
    assert find_faults(sources) == []


def test_no_module_imports_itself_in_a_circle(sources: dict[str, str]) -> None:
    assert find_cycle(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("jigsaw_forecast.model.planted", "from jigsaw_forecast.data.records import Axes"),
        ("jigsaw_forecast.data.planted", "def f():\n    from jigsaw_forecast import forecast"),
        ("jigsaw_forecast.data.planted", "import jigsaw_forecast.checkpoint"),
        ("jigsaw_forecast.grid", "from jigsaw_forecast.fields import Field"),
        ("jigsaw_forecast.model.planted", "import torch.distributed as dist"),
        ("jigsaw_forecast.model.planted", "from torch import distributed"),
        ("jigsaw_forecast.checkpoint.planted", "from torch.distributed import all_reduce"),
    ],
)
def test_a_planted_import_is_caught(module: str, line: str) -> None:
    assert len(find_faults({module: line})) == 1


def test_a_planted_cycle_is_caught() -> None:
    planted = {
        "jigsaw_forecast.data.a": "from jigsaw_forecast.data.b import x",
        "jigsaw_forecast.data.b": "from jigsaw_forecast.data import a",
    }
    assert set(find_cycle(planted)) == set(planted)
