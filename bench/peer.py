"""Asks bench/torch_side.py for diffusers' time of the same work, in a process of its own."""

import json
import subprocess
import sys
from typing import Any


def beside(what: str, task: dict[str, Any], ours: float, cpu: bool) -> dict[str, Any]:
    """What diffusers takes for a `step` or a `coder`, and our seconds over theirs; or why it was
    `skipped`.
    """
    command = [sys.executable, "-m", "bench.torch_side", what, json.dumps(task)]
    done = subprocess.run([*command, *(["--cpu"] if cpu else [])], capture_output=True, text=True)
    if done.returncode:
        return {"skipped": (done.stderr.strip() or "no reason given").splitlines()[-1]}
    theirs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**theirs, "ours_over_theirs": ours / theirs["seconds"]}
