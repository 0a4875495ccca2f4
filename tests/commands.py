"""Runs wanpipe as users do: in a process of its own, with paths on stdout and events on stderr."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """The result of a command: exit code, paths on stdout, stderr, and the events in it."""

    code: int
    paths: list[str]
    stderr: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def computed(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The events of computed entries, of one stage or of all."""
        return [
            event
            for event in self.events
            if event["event"] == "computed" and stage in (None, event["stage"])
        ]

    def loaded(self) -> list[str]:
        """The components whose weights were loaded."""
        return [event["component"] for event in self.events if event["event"] == "loaded"]


def wanpipe(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Result:
    """Run a command in `cwd` with --events json."""
    words = [str(argument) for argument in arguments]
    process = subprocess.run(
        [sys.executable, "-m", "wanpipe", *words, "--events", "json"],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    events = [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]
    return Result(process.returncode, process.stdout.split(), process.stderr, events)


def succeed(*arguments: object, cwd: Path) -> Result:
    """Run a command that must succeed."""
    result = wanpipe(*arguments, cwd=cwd)
    assert result.code == 0, result.stderr
    return result
