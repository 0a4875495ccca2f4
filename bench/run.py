"""Shows where the time of a whole `wanpipe run` goes, with random weights.

    python -m bench.run [--model 14b] [--steps 50] [--rounds 2] [--devices 2] [--output video.mp4]

Writes a model directory with a T5 of two small layers and the demo's tokenizer, since bench/text.py
measures the text encoder. Then runs the command as a process and records when its events arrive.
Each round has its own cache; the first round on a machine compiles the GPU kernels. Goal: 97 % of
the wall time in denoising steps and decoding. The default output is PNG frames. `--output none`
runs the stages one by one and writes no video.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import xxhash

from bench.dit import small
from bench.sizes import DITS, VAE_21
from bench.weights import Random, Rows, parser
from wanpipe import demo
from wanpipe.checkpoints.rename import RenameRule
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import umt5 as t5_rules
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.models.config import (
    SCHEMA,
    Component,
    Components,
    DiTConfig,
    ModelConfig,
    T5Config,
    VAEConfig,
)
from wanpipe.models.dit import DiT
from wanpipe.models.umt5 import T5
from wanpipe.models.vae import vae
from wanpipe.models.variants import VARIANTS
from wanpipe.runtime.documents import Document, encode

PROMPT = "a red ball rolls to the right"
GOAL = 0.97
# Random weights make noise, which x264 encodes slowly. With a smaller last convolution, the video
# has 3 MB instead of 18.
FAINT = {"output.weight": 0.06}
LITTLE = {"vocab": 1024, "attention_dim": 64, "ffn_dim": 128, "heads": 2, "layers": 2}


@dataclass(frozen=True)
class Event:
    """An event of the command; `at` is in seconds since the process started."""

    at: float
    fields: dict[str, Any]


def component(
    folder: Path,
    name: str,
    network: nn.Module,
    config: Document,
    rules: Sequence[RenameRule],
    dtype: str,
    gains: Mapping[str, float] | None = None,
) -> Component:
    """Write one network's file and return its entry in config.json."""
    random = Random(network, rules, dtype=dtype, gains=gains)
    written = random.write(folder / f"{name}.safetensors")
    return Component(
        file=f"{name}.safetensors",
        hash=written.hash,
        bytes=written.bytes,
        parameters=random.parameters,
        config=config,
    )


def write_config(folder: Path, name: str, parts: Mapping[str, Any]) -> None:
    """Write the config.json of a bfloat16 model of this variant."""
    variant = VARIANTS[name]
    config = ModelConfig(
        schema=SCHEMA,
        key=xxhash.xxh3_128_hexdigest(json.dumps({n: p.hash for n, p in parts.items()}).encode()),
        variant=variant.name,
        dtype="bfloat16",
        quantization=None,
        defaults=variant.defaults,
        files=Components(**parts),
    )
    (folder / "config.json").write_bytes(encode(config))


def write_model(folder: Path, dit: DiTConfig, decoder: VAEConfig) -> None:
    """Write a complete model directory."""
    t5 = T5Config(dim=dit.text_dim, **LITTLE)
    with demo.checkpoint("t2v") as source:
        words = (source / "google" / "umt5-xxl" / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words)
    digest = xxhash.xxh3_128_hexdigest(words)
    parts = {
        "tokenizer": Component(file="tokenizer.json", hash=digest, bytes=len(words), config=None),
        "t5_encoder": component(folder, "t5_encoder", T5(t5), t5, t5_rules.RULES, "BF16"),
        # the VAE stays float32, as convert keeps it
        "vae": component(
            folder, "vae", vae.Decoder(decoder), decoder, vae_rules.RULES_21_DECODER, "F32", FAINT
        ),
        "model": component(folder, "model", DiT(dit), dit, dit_rules.RULES, "BF16"),
    }
    write_config(folder, "wan2.1-t2v-1.3b", parts)


def timed(words: Sequence[str | Path], cache: Path) -> tuple[list[Event], str, float]:
    """Run a command of wanpipe; return its events, the last line of its output, and its time."""
    command = [sys.executable, "-m", "wanpipe", *map(str, words), "--events", "json"]
    command += ["--cache", str(cache)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stderr is not None and process.stdout is not None
    events, other = [], []
    for line in process.stderr:
        at = time.perf_counter() - start
        if line.startswith("{"):
            events.append(Event(at, json.loads(line)))
            print_progress(events[-1])
        else:
            other.append(line)
    output = process.stdout.read().strip()
    if process.wait():
        raise SystemExit("".join(other) + "".join(json.dumps(e.fields) + "\n" for e in events[-3:]))
    return events, output.rpartition("\n")[2], time.perf_counter() - start


def print_progress(event: Event) -> None:
    """Print the progress on stderr, in case the command does not finish."""
    kind, fields = event.fields["event"], event.fields
    if kind in ("planned", "loaded", "computed", "written"):
        parts = [fields.get(name) for name in ("stage", "component", "step")]
        what = " ".join(str(one) for one in parts if one is not None)
        print(f"{event.at:.2f} s: {kind} {what}", file=sys.stderr, flush=True)


def computed(events: Sequence[Event], stage: str) -> list[float]:
    """Return the seconds that the events report for the entries of a stage."""
    found = [event.fields for event in events if event.fields["event"] == "computed"]
    return [fields["seconds"] for fields in found if fields["stage"] == stage]


def first(events: Sequence[Event], **wanted: str) -> float | None:
    """Return when the first event with these fields arrived."""
    for event in events:
        if all(event.fields.get(name) == value for name, value in wanted.items()):
            return event.at
    return None


def print_shares(
    events: Sequence[Event], wall: float, steps: int, output: Path, rows: Rows
) -> None:
    """Print the share of steps and decoding, and the rest."""
    denoising, decoding = computed(events, "denoise"), computed(events, "decode")
    assert len(denoising) == steps and len(decoding) == 1, (len(denoising), len(decoding))
    text, inside = sum(computed(events, "encode-text")), sum(denoising) + sum(decoding)
    begun = first(events, event="planned") or events[0].at
    shown = first(events, event="computed", stage="decode")
    written = first(events, event="written")
    video = None if shown is None or written is None else written - shown
    end = 0.0 if written is None else wall - written
    rows.print(
        "run",
        wall=wall,
        steps=sum(denoising),
        first_step=denoising[0],
        median_step=sorted(denoising)[steps // 2],
        decode=sum(decoding),
        share=inside / wall,
        share_without_video=inside / (wall - (video or 0.0)),
        goal=GOAL,
        rest=wall - inside,
    )
    rows.print(
        "the rest",
        to_first_event=begun,
        encode_text=text,
        video=video,
        video_mb=output.stat().st_size / 1e6 if output.is_file() else None,
        end=end,
        other=wall - inside - text - begun - (video or 0.0) - end,
    )


def run_stages(words: list[str | Path], model: Path, steps: int, cache: Path, rows: Rows) -> None:
    """Run the stages one by one, without writing a video, and print each."""
    total = inside = 0.0
    commands: list[list[str | Path]] = [
        ["encode-text", "--model", model, "--prompt", PROMPT],
        ["denoise", "--model", model, *words],
        ["decode", "--model", model],
    ]
    last = ""
    for command in commands:
        events, output, wall = timed([*command, *(["--from", last] if last else [])], cache)
        last, made = output, sum(computed(events, str(command[0])))
        total, inside = total + wall, inside + (0.0 if command[0] == "encode-text" else made)
        rows.print(str(command[0]), wall=wall, computing=made, events=len(events))
    rows.print("stages", wall=total, share=inside / total, goal=GOAL, rest=total - inside)


def main() -> None:
    """Write the model. In each round, run it, print the shares, and run it again from the cache."""
    options = parser(__doc__)
    options.add_argument("--model", default="1.3b", choices=["1.3b", "14b"])
    options.add_argument("--steps", type=int, default=50, help="Denoising steps.")
    options.add_argument("--devices", type=int, default=1, help="Devices that denoise.")
    options.add_argument("--rounds", type=int, default=2, help="Runs with an empty cache.")
    options.add_argument("--output", default="frames.png", help="A video, frames, or `none`.")
    options.add_argument("--folder", type=Path, help="Directory for all files.")
    args = options.parse_args()
    dit, decoder, steps = DITS[args.model][0], VAE_21, args.steps
    words: list[str | Path] = ["--width", "832", "--height", "480", "--num-frames", "81"]
    if args.small:
        dit, decoder = small(dit), VAEConfig(version="2.1", encoder_dim=8, decoder_dim=8, z_dim=16)
        words, steps = ["--width", "64", "--height", "64", "--num-frames", "5"], min(steps, 4)
    words += ["--steps", str(steps)]
    if args.devices > 1:
        words += ["--devices", str(args.devices)]
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as where:
        model = Path(where) / "model"
        model.mkdir()
        write_model(model, dit, decoder)
        mx.clear_cache()
        for number in range(args.rounds):
            folder = Path(where) / str(number)
            folder.mkdir()
            if args.output == "none":
                run_stages(words, model, steps, folder / "cache", rows)
                continue
            video = folder / args.output
            run = ["run", "--model", model, "--prompt", PROMPT, "--output", video, *words]
            events, _, wall = timed(run, folder / "cache")
            print_shares(events, wall, steps, video, rows)
            _, _, wall = timed(run, folder / "cache")
            rows.print("the same run, everything cached", wall=wall)


if __name__ == "__main__":
    main()
