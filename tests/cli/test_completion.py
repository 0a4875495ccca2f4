"""Shell completion: click's own, which must know the commands that are loaded by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from wanpipe.store import Store

ROOT = Path(__file__).parent.parent.parent
COMPLETE = """
import sys
from wanpipe.app import main
try:
    main()
except SystemExit as end:
    print("code", end.code)
print("heavy", [name for name in ("mlx.core", "zarr", "numpy") if name in sys.modules])
"""


def complete(words: str, number: int, cwd: Path | None = None) -> list[str]:
    """What click prints to a shell for word `number` of a command line, and what was loaded."""
    asked = {"_WANPIPE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    result = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        cwd=cwd,
        env={**os.environ, **asked, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("wanpipe ", 1, [*stages.COMMANDS]),
        ("wanpipe en", 1, ["encode-text", "encode-image", "encode-video"]),
        ("wanpipe run --auto", 2, ["--auto-seeds"]),
        ("wanpipe run --scheduler ", 3, ["unipc", "dpm++", "euler", "lcm"]),
        ("wanpipe cache p", 2, ["pin", "pull", "push"]),
        ("wanpipe nothing --x", 2, []),
        ("wanpipe run 'open", 2, []),
    ],
)
def test_commands_and_options_are_completed_without_heavy_imports(
    words: str, number: int, found: list[str]
) -> None:
    *lines, code, heavy = complete(words, number)
    assert [line.removeprefix("plain,") for line in lines if line] == found
    assert (code, heavy) == ("code 0", "heavy []")


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("wanpipe show ", 2, ["plain,draft-1", "plain,draft-2", "plain,wan"]),
        ("wanpipe denoise --from dr", 3, ["plain,draft-1", "plain,draft-2"]),
        ("wanpipe run --cache other --model ", 5, ["plain,wan14"]),
        ("wanpipe show cat.mp", 2, ["file,cat.mp"]),
        ("wanpipe run --cache nowhere --model ", 5, ["file,"]),
    ],
)
def test_names_in_the_cache_are_completed_before_files(
    words: str, number: int, found: list[str], tmp_path: Path
) -> None:
    for cache, names in (
        ("cache", ("wan", "draft-1", "draft-2", "w\nplain,x")),
        ("other", ("wan14",)),
    ):
        for name in names:
            Store(tmp_path / cache).names.set(name, f"denoise/{'0' * 32}")
    *lines, code, heavy = complete(words, number, tmp_path)
    assert lines == found
    assert (code, heavy) == ("code 0", "heavy []")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_a_command_line(tmp_path: Path) -> None:
    program = tmp_path / "wanpipe"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wanpipe "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(_WANPIPE_COMPLETE=bash_source wanpipe)"; COMP_WORDS=(wanpipe run --outpu); '
        'COMP_CWORD=2; _wanpipe_completion wanpipe; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("--output\n", "")
