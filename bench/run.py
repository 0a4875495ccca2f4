"""Shows where the time of a whole `wanpipe run` goes, with random weights.

    python -m bench.run [--model 14b] [--steps 50] [--rounds 2] [--devices 2] [--output video.mp4]
    python -m bench.run --model a14b --steps 4 --guide-scale 1 --text --seeds 2 --picture time.svg
    python -m bench.run --model i2v-a14b --steps 4 --guide-scale 1        Lightning, from an image
    python -m bench.run --model ti2v-5b [--no-image]                      121 frames of 1280x704

Writes a model directory with the demo's tokenizer, and a T5 of two small layers or, with `--text`,
of full size. Then runs the command as a process and records when its events arrive. Each round has
a prompt of its own; the first round hashes the weights, and compiles the GPU kernels. Goal: 97 % of
the wall time in denoising steps and decoding. The default output is PNG frames. `--output none`
runs the stages one by one and writes no video. `--picture` draws the timeline of the last round,
and `--trace` writes it in Chrome's format, which chrome://tracing and Perfetto show.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from bench.models import MODELS, Sizes, draw_image, write_model
from bench.sizes import T5_XXL
from bench.timeline import Event, write_picture, write_trace
from bench.weights import Rows, parser

PROMPT = "a red ball rolls to the right"
GOAL = 0.97


def timed(words: Sequence[str | Path], cache: Path) -> tuple[list[Event], str, float]:
    """Run a command of wanpipe; return its events, the last line of its output, and its time."""
    command = [sys.executable, "-m", "wanpipe", *map(str, words), "--events", "json"]
    events, output, wall = watched([*command, "--cache", str(cache)])
    return events, output.rpartition("\n")[2], wall


def watched(command: Sequence[str]) -> tuple[list[Event], str, float]:
    """Run a process; return the events that it prints on stderr, its output, and its time."""
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
    return events, output, time.perf_counter() - start


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


def run_stages(options: Sequence[list[str | Path]], model: Path, cache: Path, rows: Rows) -> None:
    """Run the stages one by one, without writing a video, and print each.

    `options` are those of the video's size, the image and the steps.
    """
    size, image, words = options
    total = inside = 0.0
    commands: list[list[str | Path]] = [
        ["encode-text", "--prompt", PROMPT],
        *([["encode-image", *image, *size]] if image else []),
        ["denoise", *size, *words],
        ["decode"],
    ]
    made: list[str | Path] = []
    for stage, *rest in commands:
        sources = [word for one in made for word in ("--from", one)]
        rest = rest if str(stage).startswith("encode") else [*rest, *sources]
        events, output, wall = timed([stage, "--model", model, *rest], cache)
        made = [*made, output] if str(stage).startswith("encode") else [output]
        took = sum(computed(events, str(stage)))
        total, inside = total + wall, inside + (took if stage in ("denoise", "decode") else 0.0)
        rows.print(str(stage), wall=wall, computing=took, events=len(events))
    rows.print("stages", wall=total, share=inside / total, goal=GOAL, rest=total - inside)


def settings(args: Namespace, sizes: Sizes, steps: int) -> list[str | Path]:
    """Return the options of denoising, without those of the video's size."""
    words: list[str | Path] = ["--steps", str(steps)]
    words += ["--seed", f"1-{args.seeds}"] if args.seeds > 1 else []
    for name, given in (
        ("--shift", sizes.shift),
        ("--guide-scale", args.guide_scale),
        ("--memory", args.memory),
        ("--devices", args.devices if args.devices > 1 else None),
    ):
        words += [name, str(given)] if given is not None else []
    return words


def video_size(sizes: Sizes) -> list[str | Path]:
    """Return the options that set the size of the video."""
    names = ("--width", "--height", "--num-frames")
    return [word for pair in zip(names, map(str, sizes.video), strict=True) for word in pair]


def options() -> Namespace:
    """Parse the command line."""
    every = parser(__doc__)
    every.add_argument("--model", default="1.3b", choices=list(MODELS))
    every.add_argument("--guide-scale", help="Guidance; 1 takes one pass a step.")
    every.add_argument("--seeds", type=int, default=1, help="Videos of one command.")
    every.add_argument("--text", action="store_true", help="Write a T5 of full size.")
    every.add_argument("--no-image", action="store_true", help="Give ti2v-5b no image.")
    every.add_argument("--memory", help="The limit that the command gets.")
    every.add_argument("--trace", type=Path, help="Write a timeline to this file.")
    every.add_argument("--picture", type=Path, help="Draw a timeline in this file, as SVG.")
    every.add_argument("--steps", type=int, default=50, help="Denoising steps.")
    every.add_argument("--devices", type=int, default=1, help="Devices that denoise.")
    every.add_argument("--rounds", type=int, default=2, help="Runs with an empty cache.")
    every.add_argument("--output", default="frames.png", help="A video, frames, or `none`.")
    every.add_argument("--folder", type=Path, help="Directory for all files.")
    args = every.parse_args()
    if args.no_image and args.model != "ti2v-5b":
        every.error("--no-image is for ti2v-5b only")
    return args


def main() -> None:
    """Write the model. In each round, run it, print the shares, and run it again from the cache."""
    args = options()
    sizes = MODELS[args.model].tiny() if args.small else MODELS[args.model]
    steps = min(args.steps, 4) if args.small else args.steps
    size, words = video_size(sizes), settings(args, sizes, steps)
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as where:
        model, cache = Path(where) / "model", Path(where) / "cache"
        image = Path(where) / "image.png"
        model.mkdir()
        write_model(model, sizes, T5_XXL if args.text and not args.small else None)
        mx.clear_cache()
        given: list[str | Path] = []
        if sizes.image and not args.no_image:
            draw_image(image, *sizes.video[:2])
            given = ["--image", image]
        os.sync()  # else the first entries wait until the weights are on disk
        for number in range(args.rounds):
            folder = Path(where) / str(number)
            folder.mkdir()
            if args.output == "none":
                run_stages([size, given, words], model, folder / "cache", rows)
                continue
            video = folder / args.output
            run = ["run", "--model", model, "--prompt", f"{PROMPT} {number}", "--output", video]
            run += [*given, *size, *words]
            events, _, wall = timed(run, cache)
            print_shares(events, wall, steps, args.seeds, video, rows)
            if args.trace is not None:
                write_trace(events, wall, args.trace)
            if args.picture is not None:
                title = f"wanpipe run, {args.model}, {steps} steps"
                write_picture(events, wall, args.picture, title)
            _, _, wall = timed(run, cache)
            rows.print("the same run, everything cached", wall=wall)


if __name__ == "__main__":
    main()
