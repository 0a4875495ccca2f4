"""Times diffusers on the same work, in a process of its own (bench/torch_side.py)."""

import json
import subprocess
import sys
from typing import Any


def run_diffusers(what: str, task: dict[str, Any], ours: float, cpu: bool) -> dict[str, Any]:
    """Time a `step` or a `coder` of diffusers and compare it with `ours`, in seconds.

    If diffusers cannot run, the result has only `skipped`, the reason.
    """
    command = [sys.executable, "-m", "bench.torch_side", what, json.dumps(task)]
    done = subprocess.run([*command, *(["--cpu"] if cpu else [])], capture_output=True, text=True)
    if done.returncode:
        return {"skipped": (done.stderr.strip() or "no reason given").splitlines()[-1]}
    theirs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**theirs, "ours_over_theirs": ours / theirs["seconds"]}
