"""Compares the memory of every stage, as the system sees it, with its plan.

    python -m bench.memory [--small] [--json] [--repeats N] [STAGE ...]

Runs wanpipe's commands as processes, with random weights of reduced width. Measures the peak
resident memory, and subtracts the peak of the same command with a tiny network, which is the
interpreter and its libraries. Runs on Linux and macOS. Resident memory does not include CUDA
memory; bench/dit.py, vae.py and text.py print MLX's peak there.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.weights import Rows, parser

GOAL = 0.15  # largest relative difference from the plan
PROMPT = "a red circle moves right on a white background"
# Runs a command and writes its peak to a file. It is a process of its own, because a forked process
# inherits the memory of its parent as its peak.
WAIT = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[2:]).pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths of the networks, size of the video, and repetitions of the prompt."""

    dim: int
    text: int
    vae: int
    width: int
    height: int
    num_frames: int
    words: int


TINY = Size(dim=64, text=64, vae=4, width=32, height=32, num_frames=5, words=1)
SMALL = Size(dim=64, text=64, vae=4, width=288, height=288, num_frames=9, words=2)
LARGE = Size(dim=256, text=1024, vae=8, width=640, height=480, num_frames=13, words=40)
# glibc keeps freed arrays of up to 32 MB, up to a sixth of the peak, and OpenBLAS has a buffer per
# thread. With these settings the measurement is the memory of the program itself.
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}


def networks(size: Size) -> list[tuple[str, Any, Any, Any, str]]:
    """Return every network with its name, dimensions, tensor rows and format."""
    from wanpipe.checkpoints.rules import dit as dit_rules
    from wanpipe.checkpoints.rules import umt5 as t5_rules
    from wanpipe.checkpoints.rules import vae as vae_rules
    from wanpipe.models.config import DiTConfig, T5Config, VAEConfig
    from wanpipe.models.dit import DiT
    from wanpipe.models.umt5 import T5
    from wanpipe.models.vae import vae

    dims = {"dim": size.dim, "ffn_dim": 4 * size.dim, "heads": size.dim // 64, "layers": 3}
    dit = DiTConfig(**dims, in_dim=36, out_dim=16, text_dim=size.text)
    dims = {"dim": size.text, "ffn_dim": 5 * size.text // 2, "heads": size.text // 64, "layers": 6}
    t5 = T5Config(**dims, attention_dim=size.text, vocab=1024)
    half = VAEConfig(version="2.1", encoder_dim=size.vae, decoder_dim=size.vae, z_dim=16)
    return [
        ("t5_encoder", T5(t5), t5, t5_rules.RULES, "BF16"),
        ("vae", vae.Decoder(half), half, vae_rules.RULES_21_DECODER, "F32"),
        ("vae_encoder", vae.Encoder(half), half, vae_rules.RULES_21_ENCODER, "F32"),
        ("high_noise_model", DiT(dit), dit, dit_rules.RULES, "BF16"),
        ("low_noise_model", DiT(dit), dit, dit_rules.RULES, "BF16"),
    ]


def write_model(folder: Path, size: Size) -> None:
    """Write an image and a model directory of Wan2.2 I2V-A14B, which has every part except CLIP."""
    import xxhash
    from PIL import Image

    from bench.models import component, write_config
    from wanpipe import demo
    from wanpipe.models.config import Component

    folder.mkdir()
    with demo.checkpoint("t2v") as source:
        words = (source / "google" / "umt5-xxl" / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words)
    digest = xxhash.xxh3_128_hexdigest(words)
    tokenizer = Component(file="tokenizer.json", hash=digest, bytes=len(words), config=None)
    parts = {"tokenizer": tokenizer} | {
        name: component(folder, name, *rest) for name, *rest in networks(size)
    }
    write_config(folder, "wan2.2-i2v-a14b", parts)
    noise = Image.effect_noise((size.width, size.height), 100)
    noise.convert("RGB").save(folder / "image.png")


@dataclass(frozen=True)
class Ran:
    """Printed paths, events and peak resident memory in bytes of a command."""

    paths: list[str]
    events: list[dict[str, Any]]
    peak: int


def run(words: Sequence[object], folder: Path) -> Ran:
    """Run a command of wanpipe in `folder`."""
    peak = folder / "peak"
    command = [sys.executable, "-m", "wanpipe", *map(str, words), "--events", "json"]
    environment = {**os.environ, **SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", WAIT, str(peak), *command],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    unit = 1 if sys.platform == "darwin" else 1024
    return Ran(done.stdout.split(), events, int(peak.read_text()) * unit)


class Studio:
    """A folder with a model and a cache, in which commands run."""

    def __init__(self, folder: Path, size: Size) -> None:
        folder.mkdir()
        self.folder, self.size = folder, size
        # in its own process, because later processes would inherit its memory
        code = "import sys, pathlib; from bench.memory import Size, write_model; "
        code += f"write_model(pathlib.Path(sys.argv[1]), {size!r})"
        subprocess.run([sys.executable, "-c", code, str(folder / "model")], check=True)
        self.entries: dict[str, str] = {}

    def words(self, stage: str) -> list[object]:
        """Return the arguments of a stage's command, with the entries of earlier stages."""
        size, found = self.size, self.entries
        canvas = ["--width", size.width, "--height", size.height, "--num-frames", size.num_frames]
        text = ["--prompt", " ".join([PROMPT] * size.words)]
        step = ["--from", found.get("denoise")]
        inputs = ["--from", found.get("encode-text"), "--from", found.get("encode-image")]
        words = {
            "encode-text": ["encode-text", *text],
            "encode-image": ["encode-image", "--image", "model/image.png", *canvas],
            "denoise": ["denoise", *inputs, "--steps", 40, "--stop-at", 4, *canvas],
            "decode": ["decode", *step, "--tiling", "none"],
            "decode in tiles": ["decode", *step, "--tiling", "spatial"],
        }
        return [*words[stage], "--model", "model"]

    def measure(self, stage: str) -> tuple[int, int]:
        """Return the planned and the measured bytes of a stage, including libraries."""
        words = self.words(stage)
        planned = [
            event["peak_bytes"]
            for event in run([*words, "--force", "--dry-run"], self.folder).events
            if event["event"] == "forecast"
        ]
        ran = run([*words, "--force"], self.folder)
        self.entries[stage] = ran.paths[-1]
        return max(planned), ran.peak


STAGES = ("encode-text", "encode-image", "denoise", "decode", "decode in tiles")


def main() -> None:
    """Measure the named stages, or all."""
    options = parser(__doc__)
    options.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    args = options.parse_args()
    rows = Rows(args.json)
    size = SMALL if args.small else LARGE
    rows.print("size", **asdict(size))
    with tempfile.TemporaryDirectory() as where:
        tiny, studio = Studio(Path(where) / "tiny", TINY), Studio(Path(where) / "large", size)
        for stage in STAGES:
            base, peaks, planned = [], [], 0
            for _ in range(args.repeats if stage in args.stages or not args.stages else 1):
                base.append(tiny.measure(stage)[1])
                planned, peak = studio.measure(stage)
                peaks.append(peak)
            taken = statistics.median(peaks) - statistics.median(base)
            rows.print(
                stage,
                planned_mb=planned / 1e6,
                used_mb=taken / 1e6,
                over_plan_percent=100 * (taken / planned - 1),
                goal_percent=100 * GOAL,
                libraries_mb=statistics.median(base) / 1e6,
            )


if __name__ == "__main__":
    main()
