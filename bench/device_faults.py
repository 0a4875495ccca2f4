"""Ends a run on several devices in every way; checks that it goes on to the bits of one device.

    python -m bench.device_faults [--devices 2] [--steps 12] [--small]

Writes a 1.3B of random weights as bench.run does, and denoises on one device. Then runs the same
steps on several, and in turn kills another process, kills the first, interrupts it, and stops
another one. Prints how long the command took to end, what it said, how many processes are left, and
how many steps it kept. Needs /proc.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

from bench.devices import chain
from bench.models import MODELS, write_model
from bench.run import PROMPT, timed
from bench.weights import Rows, parser
from tests.processes import alive, children

OTHER, FIRST = "other", "first"
FAULTS = (
    ("kill the other", OTHER, signal.SIGKILL),
    ("kill the first", FIRST, signal.SIGKILL),
    ("terminate", FIRST, signal.SIGTERM),
    ("Ctrl-C", FIRST, signal.SIGINT),
    ("stop the other", OTHER, signal.SIGSTOP),
)
LONGEST = 40.0  # seconds to wait for the end


def end(words: list[str], whom: str, number: signal.Signals, rows: Rows, name: str) -> None:
    """Start a command, send one of its processes a signal after a step, and print how it ends."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "computed" and event.get("stage") == "denoise":
            break
    others = children(process.pid)
    if not others:
        raise SystemExit(f"{name}: the run is complete; give more --steps")
    time.sleep(0.2)  # in the middle of a step
    started = time.perf_counter()
    os.kill(others[0] if whom == OTHER else process.pid, number)
    try:
        _, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        err = "hangs"
    took = time.perf_counter() - started
    while any(map(alive, others)) and time.perf_counter() - started < LONGEST:
        time.sleep(0.05)
    left = [one for one in others if alive(one)]
    gone = time.perf_counter() - started
    for one in left:
        os.kill(one, signal.SIGKILL)
    lines = [line for line in err.splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    said = json.loads(said).get("text", said) if said.startswith("{") else said
    rows.print(
        name, code=process.returncode, seconds=took, all_gone=gone, left=len(left), said=said
    )


def main() -> None:
    """Write the model, denoise on one device, then end runs on several."""
    options = parser(__doc__)
    options.add_argument("--devices", type=int, default=2)
    options.add_argument("--steps", type=int, default=12)
    args = options.parse_args()
    sizes = MODELS["1.3b"]
    words: list[str | Path] = ["--width", "832", "--height", "480"]
    if args.small:
        sizes = sizes.tiny()
        words = ["--width", "128", "--height", "128", "--num-frames", "9"]
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory() as where:
        model, caches = Path(where) / "model", [Path(where) / name for name in ("one", "several")]
        model.mkdir()
        write_model(model, sizes)
        mx.clear_cache()
        text = [
            timed(["encode-text", "--model", model, "--prompt", PROMPT], one)[1] for one in caches
        ]
        words = ["--model", model, *words, "--steps", str(args.steps), "--seed", "1"]
        alone = chain(Path(timed(["denoise", "--from", text[0], *words], caches[0])[1]))
        count = str(args.devices)
        several: list[str | Path] = ["denoise", "--from", text[1], *words, "--devices", count]
        command = [sys.executable, "-m", "wanpipe", *map(str, several), "--events", "json"]
        for name, whom, number in FAULTS:
            end([*command, "--cache", str(caches[1])], whom, number, rows, name)
        kept = len(list((caches[1] / "denoise").iterdir()))
        steps = chain(Path(timed(several, caches[1])[1]))
        rows.print(
            "the same command again",
            kept=kept,
            steps=len(steps),
            same_keys=[one.key for one in steps] == [one.key for one in alone],
            same_bits=[one.record.digest for one in steps] == [one.record.digest for one in alone],
        )


if __name__ == "__main__":
    main()
