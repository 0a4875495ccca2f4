"""Runs programs of bench/ at tiny sizes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def small(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a part like bench/gpu.sh with SMALL=1, in an empty folder."""
    words = [sys.executable, "-m", *command.split(), "--small"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)}
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
