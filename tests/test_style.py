"""The style rules that a program can check: sizes, imports, docstrings, names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("stages", "wanpipe", "bench", "tests")
    for path in (ROOT / folder).rglob("*.py")
]
FILE, FUNCTION, PARAMETERS = 400, 60, 8
SIX = ("convert", "encode-text", "encode-image", "encode-video", "denoise", "decode")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


def parameters(function: Function) -> int:
    """How many values a caller gives; self, cls and what **options gathers do not count."""
    if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
        return 0  # a kernel has no structures to put its arrays in
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every) + bool(arguments.vararg)


def test_no_file_is_above_400_lines() -> None:
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {file: length for file, length in lengths.items() if length > FILE} == {}


def test_no_function_is_above_60_lines() -> None:
    long = {
        f"{name(path)}:{function.name}": function.end_lineno - function.lineno + 1
        for path in SOURCES
        for function in functions(path)
        if function.end_lineno and function.end_lineno - function.lineno >= FUNCTION
    }
    assert long == {}


def test_no_function_takes_more_than_8_parameters() -> None:
    many = {
        f"{name(path)}:{function.name}": parameters(function)
        for path in SOURCES
        for function in functions(path)
        if parameters(function) > PARAMETERS
    }
    assert many == {}


def test_no_package_imports_tests_or_bench() -> None:
    wrong = {
        name(path)
        for folder in ("stages", "wanpipe")
        for path in (ROOT / folder).rglob("*.py")
        if imported(path) & {"tests", "bench"}
    }
    assert wrong == set()


@pytest.mark.parametrize("folder", ["stages", "wanpipe", "bench", "tests"])
def test_every_module_has_a_docstring(folder: str) -> None:
    silent = {
        name(path)
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text("utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    }
    assert silent == set()


@pytest.mark.parametrize("command", SIX)
def test_the_docstring_of_a_stage_names_what_it_reads_and_writes(command: str) -> None:
    module = ROOT / (stages.COMMANDS[command].replace(".", "/") + ".py")
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    assert docstring.startswith(f"{command}: ")
    assert re.search(r"^Reads: ", docstring, re.MULTILINE)
    assert re.search(r"^Writes: ", docstring, re.MULTILINE)


@pytest.mark.parametrize("command", SIX)
def test_one_word_leads_to_command_module_test_and_heading(command: str) -> None:
    word = command.replace("-", "_")
    assert stages.COMMANDS[command] == f"stages.{word}"
    assert (ROOT / "stages" / f"{word}.py").is_file()
    assert (ROOT / "tests" / f"test_{word}.py").is_file()
    headings = re.findall(r"^#+ (.*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert command in headings


def test_no_class_has_a_vague_name() -> None:
    vague = {
        f"{name(path)}:{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and re.search(r"Util|Manager|Helper|Handler", node.name)
    }
    assert vague == set()
