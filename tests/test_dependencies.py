"""What is imported is declared in pyproject.toml, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = {"stages", "wanpipe"}
SUPPLIED = packages_distributions()  # names that can be imported, and who supplies them


def declared() -> set[str]:
    """Distributions that a user's installation brings, with those of the extras for files and
    places, in the spelling of their metadata.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["gguf"], *extras["remote"]]
    return {normal(re.split(r"[^\w.-]", line)[0]) for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, str]:
    """Top-level names from elsewhere that our packages import, each with a file that does."""
    found = {}
    for path in [path for folder in OURS for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    found[top] = path.relative_to(ROOT).as_posix()
    return found


def test_what_is_imported_is_declared() -> None:
    missing = {
        name: file
        for name, file in imported().items()
        if declared().isdisjoint(map(normal, SUPPLIED.get(name, [])))
    }
    assert missing == {}


def test_what_is_declared_is_imported() -> None:
    used = {normal(supplier) for name in imported() for supplier in SUPPLIED.get(name, [])}
    assert declared() - used == set()
