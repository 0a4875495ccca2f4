"""Applies deliberate faults to what keys are made of, one at a time, and tells which of them the
golden tests do not notice.

    python -m tests.mutants [--only TEXT] [--jobs N] [--list]

The faults are listed in tests/faults.py. Each one is applied in a process of its own: to the
material of the recipes as they are hashed, to a function, or to a text in a copy of the tree.
Exit code 1 if a fault survives, if one does not apply any more, or if the tests fail without one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import FAULTS, Fault, Function, Material, Text

ROOT = Path(__file__).parent.parent
TESTS = ("tests/test_golden_noise.py", "tests/test_golden_keys.py", "tests/test_golden_fields.py")
FINE, FAILED, NOT_APPLIED = 0, 1, 86  # how a process of tests ends
LIMIT = 600  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the fault that these tests run with; this module is their plugin."""
    parser.addoption("--fault")


def pytest_configure(config: pytest.Config) -> None:
    """Apply the fault before any test module is imported."""
    import wanpipe

    assert Path(wanpipe.__file__).is_relative_to(Path.cwd()), f"{wanpipe.__file__} is tested"
    if name := config.getoption("--fault"):
        fault = FAULTS[name]
        if isinstance(fault, Material | Function):
            fault.apply()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End in a way of its own where the fault had no effect anywhere."""
    name = session.config.getoption("--fault")
    fault = FAULTS[name] if name else None
    if isinstance(fault, Material | Function) and not fault.hits:
        session.exitstatus = NOT_APPLIED


def run_tests(tree: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """Run tests of a tree in a process; its exit code and output."""
    with tempfile.TemporaryDirectory(prefix="wanpipe-mutant-") as folder:
        words = ["-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        words += ["-p", "tests.mutants", "--basetemp", f"{folder}/base", "--tb", "line"]
        process = subprocess.run(
            [sys.executable, *words, *options, *tests],
            cwd=tree,
            env={
                **os.environ,
                "PYTHONPATH": str(tree),
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "1000",
            },
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    return process.returncode, process.stdout + process.stderr


def copied(target: Path, fault: Text) -> Path | None:
    """Copy the tree with texts replaced; None where one is not there exactly once."""
    for edit in fault.edits:
        file = ROOT / edit.file
        if not file.is_file() or file.read_text(encoding="utf-8").count(edit.old) != 1:
            return None
    for name in ("wanpipe", "stages", "tests"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", target / "pyproject.toml")
    for edit in fault.edits:
        text = (target / edit.file).read_text(encoding="utf-8")
        (target / edit.file).write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    return target


def outcome(name: str, fault: Fault, tests: Sequence[str], known: Sequence[str]) -> tuple[str, str]:
    """Run the tests with a fault: "killed", "SURVIVES" or "DOES NOT APPLY", and by which test.

    Tests of `known` fail without a fault and are left out.
    """
    options = ["-x", "--fault", name, *(f"--deselect={test}" for test in known)]
    with tempfile.TemporaryDirectory(prefix="wanpipe-mutant-") as folder:
        tree = copied(Path(folder), fault) if isinstance(fault, Text) else ROOT
        if tree is None:
            return "DOES NOT APPLY", f"{fault} is not in the tree once"
        code, output = run_tests(tree, tests, *options)
    if code == NOT_APPLIED:
        return "DOES NOT APPLY", "nothing was changed by it"
    if code == FINE:
        return "SURVIVES", ""
    assert code == FAILED, output  # else no test ran
    return "killed", "; ".join(failures(output))


def failures(output: str) -> list[str]:
    """The tests that a run of pytest says have failed."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [line.partition(" ")[2].partition(" - ")[0] for line in lines]


def main(words: Sequence[str]) -> int:
    """Apply the faults that are asked for and print what came of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    asked = parser.parse_args(words)
    chosen = {name: fault for name, fault in FAULTS.items() if asked.only in name}
    if asked.list:
        print("\n".join(chosen))
        return 0
    code, output = run_tests(ROOT, TESTS)
    assert code in (FINE, FAILED), output
    known = failures(output)
    for test in known:
        print(f"fails without a fault, left out: {test}", flush=True)
    results = []
    with ThreadPoolExecutor(asked.jobs) as pool:

        def run(pair: tuple[str, Fault]) -> str:
            what, by = outcome(*pair, TESTS, known)
            print(f"{what:14}  {pair[0]}  {by}", flush=True)
            return what

        results = list(pool.map(run, chosen.items()))
    wrong = len(results) - results.count("killed")
    print(f"{results.count('killed')} of {len(results)} faults killed")
    return 1 if wrong or known else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
