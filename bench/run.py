"""Shows where the time of a whole `wanpipe run` goes, with random weights.

    python -m bench.run [--model 14b] [--steps 50] [--rounds 2] [--devices 2] [--output video.mp4]
    python -m bench.run --model a14b --steps 4 --guide-scale 1 --text --seeds 2 --trace trace.json

Writes a model directory with the demo's tokenizer, and a T5 of two small layers or, with `--text`,
of full size. Then runs the command as a process and records when its events arrive. Each round has
a prompt of its own; the first round hashes the weights, and compiles the GPU kernels. Goal: 97 % of
the wall time in denoising steps and decoding. The default output is PNG frames. `--output none`
runs the stages one by one and writes no video. `--trace` writes the timeline of the last round in
Chrome's format, which chrome://tracing and Perfetto show.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import xxhash
from msgspec.structs import replace

from bench.dit import small
from bench.sizes import DITS, T5_XXL, VAE_21
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


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model of the family: its name, the dimensions of its networks, its experts and its video.

    `steps` take each expert for the same number of steps, because of the shift that is given.
    """

    variant: str
    dit: DiTConfig
    vae: VAEConfig = VAE_21
    experts: tuple[str, ...] = ("model",)
    video: tuple[int, int, int] = (832, 480, 81)
    shift: float | None = None


PAIR = ("low_noise_model", "high_noise_model")
MODELS = {
    "1.3b": Sizes(variant="wan2.1-t2v-1.3b", dit=DITS["1.3b"][0]),
    "14b": Sizes(variant="wan2.1-t2v-14b", dit=DITS["14b"][0]),
    # Lightning's shift: 2 of 4 steps for each expert
    "a14b": Sizes(variant="wan2.2-t2v-a14b", dit=DITS["14b"][0], experts=PAIR, shift=5.0),
}


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


def write_model(
    folder: Path,
    dit: DiTConfig,
    decoder: VAEConfig,
    variant: str = "wan2.1-t2v-1.3b",
    experts: Sequence[str] = ("model",),
    t5: T5Config | None = None,
) -> None:
    """Write a complete model directory."""
    t5 = t5 or T5Config(dim=dit.text_dim, **LITTLE)
    with demo.checkpoint("t2v") as source:
        words = (source / "google" / "umt5-xxl" / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words)
    digest = xxhash.xxh3_128_hexdigest(words)
    parts = {
        "tokenizer": Component(file="tokenizer.json", hash=digest, bytes=len(words), config=None),
        "t5_encoder": component(folder, "t5_encoder", T5(t5), t5, t5_rules.RULES, "BF16"),
        # the VAE stays float32, as convert keeps it
        "vae": component(
            folder,
            "vae",
            vae.Decoder(decoder),
            decoder,
            vae_rules.RULES_21_DECODER if decoder.version == "2.1" else vae_rules.RULES_22_DECODER,
            "F32",
            FAINT,
        ),
    }
    for name in experts:
        parts[name] = component(folder, name, DiT(dit), dit, dit_rules.RULES, "BF16")
    write_config(folder, variant, parts)


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


def write_trace(events: Sequence[Event], wall: float, path: Path) -> None:
    """Write a timeline in Chrome's trace format: what was computed, and when other events came."""
    begun = first(events, event="planned") or events[0].at
    spans = [("start", 0.0, begun), ("end", events[-1].at, wall)]
    marks = []
    for event in events:
        fields, kind = event.fields, event.fields["event"]
        names = (kind, fields.get("stage"), fields.get("component"), fields.get("step"))
        name = " ".join(str(part) for part in names if part is not None)
        if kind == "computed":
            spans.append((name, event.at - fields["seconds"], event.at))
        else:
            marks.append((name, event.at))
    common = {"pid": 1, "tid": 1}
    rows: list[dict[str, Any]] = [
        {"name": name, "ph": "X", "ts": 1e6 * start, "dur": 1e6 * (end - start), **common}
        for name, start, end in spans
    ]
    rows += [{"name": name, "ph": "i", "s": "p", "ts": 1e6 * at, **common} for name, at in marks]
    path.write_text(json.dumps({"traceEvents": rows}), encoding="utf-8")


def print_shares(
    events: Sequence[Event], wall: float, steps: int, seeds: int, output: Path, rows: Rows
) -> None:
    """Print the share of steps and decoding, and the rest.

    `over` is the time of the command divided by that of its steps and decodings, if each took as
    long as the shortest one, without loading.
    """
    denoising, decoding = computed(events, "denoise"), computed(events, "decode")
    assert (len(denoising), len(decoding)) == (steps * seeds, seeds), (denoising, decoding)
    text, inside = sum(computed(events, "encode-text")), sum(denoising) + sum(decoding)
    begun = first(events, event="planned") or events[0].at
    shown = first(events, event="computed", stage="decode")
    written = first(events, event="written")
    video = None if shown is None or written is None or seeds > 1 else written - shown
    end = 0.0 if written is None else wall - written
    rows.print(
        "run",
        wall=wall,
        steps=sum(denoising),
        first_step=denoising[0],
        median_step=sorted(denoising)[len(denoising) // 2],
        shortest_step=min(denoising),
        decode=sum(decoding),
        shortest_decode=min(decoding),
        over=wall / (len(denoising) * min(denoising) + seeds * min(decoding)),
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
    options.add_argument("--model", default="1.3b", choices=list(MODELS))
    options.add_argument("--guide-scale", help="Guidance; 1 takes one pass a step.")
    options.add_argument("--seeds", type=int, default=1, help="Videos of one command.")
    options.add_argument("--text", action="store_true", help="Write a T5 of full size.")
    options.add_argument("--memory", help="The limit that the command gets.")
    options.add_argument("--trace", type=Path, help="Write a timeline to this file.")
    options.add_argument("--steps", type=int, default=50, help="Denoising steps.")
    options.add_argument("--devices", type=int, default=1, help="Devices that denoise.")
    options.add_argument("--rounds", type=int, default=2, help="Runs with an empty cache.")
    options.add_argument("--output", default="frames.png", help="A video, frames, or `none`.")
    options.add_argument("--folder", type=Path, help="Directory for all files.")
    args = options.parse_args()
    sizes, steps, seeds = MODELS[args.model], args.steps, args.seeds
    t5 = T5_XXL if args.text else None
    if args.small:
        tiny = replace(sizes.vae, encoder_dim=8, decoder_dim=8)
        sizes = replace_fields(sizes, dit=small(sizes.dit), vae=tiny, video=(64, 64, 5))
        t5, steps = None, min(steps, 4)
    names = ("--width", "--height", "--num-frames")
    words: list[str | Path] = []
    for name, value in zip(names, sizes.video, strict=True):
        words += [name, str(value)]
    words += ["--steps", str(steps)]
    words += ["--seed", f"1-{seeds}"] if seeds > 1 else []
    for name, given in (
        ("--shift", sizes.shift),
        ("--guide-scale", args.guide_scale),
        ("--memory", args.memory),
    ):
        words += [name, str(given)] if given is not None else []
    if args.devices > 1:
        words += ["--devices", str(args.devices)]
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as where:
        model, cache = Path(where) / "model", Path(where) / "cache"
        model.mkdir()
        write_model(model, sizes.dit, sizes.vae, sizes.variant, sizes.experts, t5)
        mx.clear_cache()
        os.sync()  # else the first entries wait until the weights are on disk
        for number in range(args.rounds):
            folder = Path(where) / str(number)
            folder.mkdir()
            if args.output == "none":
                run_stages(words, model, steps, folder / "cache", rows)
                continue
            video = folder / args.output
            prompt = f"{PROMPT} {number}"
            run = ["run", "--model", model, "--prompt", prompt, "--output", video, *words]
            events, _, wall = timed(run, cache)
            print_shares(events, wall, steps, seeds, video, rows)
            if args.trace is not None:
                write_trace(events, wall, args.trace)
            _, _, wall = timed(run, cache)
            rows.print("the same run, everything cached", wall=wall)


if __name__ == "__main__":
    main()
