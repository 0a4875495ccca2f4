"""Imports run down: no circle, no arrow up. Type-only imports and those in functions count."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
# from the top floor to the ground; a room may import what stands below it
FLOORS = (
    "wanpipe.__main__",
    "wanpipe",  # re-exports the stages for Python users
    "wanpipe.app",
    "stages",
    "wanpipe.sweeps",
    "wanpipe.cli",
    "wanpipe.demo",
    "wanpipe.denoising",
    "wanpipe.pipeline",
    "wanpipe.weights",
    "wanpipe.checkpoints",
    "wanpipe.models",
    "wanpipe.backend",
    "wanpipe.cache",
    "wanpipe.store",
    "wanpipe.media",
    "wanpipe.sampling",
    "wanpipe.runtime",
    "wanpipe.errors",
)
BY_NAME = {"wanpipe", "wanpipe.app"}  # they import stages by name, when one is asked for
MOST = 16  # modules in one room, and rooms in one


def modules() -> dict[str, Path]:
    """Every module of stages and wanpipe by its dotted name."""
    found = {}
    for top in ("stages", "wanpipe"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                found.add(child if child in known else node.module)
    return found & set(known)


def graph() -> dict[str, set[str]]:
    """What each module imports of ours."""
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def room(module: str) -> str:
    """The floor that a module stands on."""
    parts = module.split(".")
    return "stages" if parts[0] == "stages" else ".".join(parts[:2])


def upward(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports from one floor to a higher one."""
    level = {name: index for index, name in enumerate(FLOORS)}
    return {
        (module, target)
        for module, targets in arrows.items()
        for target in targets
        if level[room(target)] < level[room(module)]
    }


def test_every_room_has_its_floor() -> None:
    assert {room(module) for module in modules()} == set(FLOORS)


def test_no_import_goes_up() -> None:
    assert upward(graph()) == set()


def test_an_import_that_goes_up_is_noticed() -> None:
    assert upward({"wanpipe.models.dit": {"wanpipe.weights.load"}}) == {
        ("wanpipe.models.dit", "wanpipe.weights.load")
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = graph()
    # a package's own file gathers what lies in it, and is no part of what its modules know
    arrows = {
        module: {target for target in targets if not module.startswith(f"{target}.")}
        for module, targets in arrows.items()
    }
    list(TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_only_the_front_doors_name_the_stages() -> None:
    named = {name for name, path in modules().items() if '"stages.' in path.read_text("utf-8")}
    assert {name for name in named if room(name) != "stages"} <= BY_NAME


def test_no_room_has_more_than_one_reads_at_once() -> None:
    """`stages` has a module for each command: its list is that of `wanpipe --help`."""
    sizes: dict[tuple[str, bool], int] = {}
    for name, path in modules().items():
        parent, is_room = name.rpartition(".")[0], path.name == "__init__.py"
        sizes[parent, is_room] = sizes.get((parent, is_room), 0) + 1
    many = {parent for (parent, _), size in sizes.items() if parent and size > MOST}
    assert many <= {"stages"}
