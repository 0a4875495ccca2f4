"""Times a whole `wanpipe run` beside a whole script of diffusers, on the same random weights.

    python -m bench.whole_peer [1.3b|a14b] [--rounds 2] [--picture FOLDER] [--small]

1.3b takes 50 steps with guidance 5, a14b 4 steps with guidance 1, as with Lightning. Both sides use
UniPC and bfloat16, read their weights from the page cache, and write PNG frames with wanpipe's
writer (bench/torch_run.py). Only wanpipe encodes a text, with a T5 of two small layers; diffusers
reads embeddings. A row therefore has the ratio without the text too. The first round of wanpipe
hashes the weights. The two sides follow each other: the disk holds the weights of one. `--picture`
draws the last round of each side. Goal: 0.75 of the time of diffusers.
"""

import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx

from bench.models import MODELS, Sizes, write_model
from bench.run import PROMPT, timed, video_size, watched
from bench.theirs import FOLDERS, write_pipeline
from bench.timeline import Event, spans, totals, write_picture
from bench.weights import Rows, parser
from wanpipe.models.variants import VARIANTS

GOAL = 0.75
SETTINGS = {"1.3b": (50, 5.0), "a14b": (4, 1.0)}  # steps, guidance
NEEDED = ("torch", "diffusers", "accelerate")


@dataclass(frozen=True)
class Ran:
    """The events of a process, and its time in seconds."""

    events: list[Event]
    wall: float

    @property
    def kinds(self) -> dict[str, float]:
        """Seconds of each kind of work."""
        return totals(spans(self.events, self.wall), "kind")

    @property
    def text(self) -> float:
        """Seconds of encoding the text, or of reading its embeddings."""
        return self.kinds.get("text", 0.0)


def run_ours(folder: Path, sizes: Sizes, steps: int, guidance: float, rounds: int) -> list[Ran]:
    """Write our model, make a video in each round, and remove the model."""
    model = folder / "model"
    model.mkdir()
    write_model(model, sizes)
    mx.clear_cache()
    os.sync()
    words: list[str | Path] = [*video_size(sizes), "--shift", str(shift(sizes))]
    words += ["--steps", str(steps), "--guide-scale", str(guidance), "--scheduler", "unipc"]
    ran = []
    for number in range(rounds):
        output = folder / f"ours-{number}.png"
        run = ["run", "--model", model, "--prompt", f"{PROMPT} {number}", "--output", output]
        events, _, wall = timed([*run, *words], folder / "cache")
        ran.append(Ran(events, wall))
    shutil.rmtree(model)
    return ran


def run_theirs(folder: Path, sizes: Sizes, steps: int, guidance: float, rounds: int) -> list[Ran]:
    """Write the model for diffusers, make a video in each round, and remove the model."""
    model = folder / "diffusers"
    write_pipeline(model, sizes)
    mx.clear_cache()
    os.sync()
    width, height, frames = sizes.video
    task = {
        "folder": str(model),
        "components": {**{FOLDERS[name]: name for name in sizes.experts}, "vae": "vae"},
        "latent": [1, sizes.vae.z_dim, (frames - 1) // 4 + 1, height // 8, width // 8],
        "steps": steps,
        "guide_scale": guidance,
        "shift": shift(sizes),
        "boundary": VARIANTS[sizes.variant].defaults.boundary,
    }
    ran = []
    for number in range(rounds):
        given = json.dumps({**task, "seed": number, "output": str(folder / f"theirs-{number}.png")})
        command = [sys.executable, "-m", "bench.torch_run", given]
        command += [] if mx.cuda.is_available() else ["--cpu"]
        events, _, wall = watched(command)
        ran.append(Ran(events, wall))
    shutil.rmtree(model)
    return ran


def shift(sizes: Sizes) -> float:
    """Return the shift that both sides get."""
    return sizes.shift or VARIANTS[sizes.variant].defaults.shift


def print_rounds(ours: list[Ran], theirs: list[Ran], rows: Rows) -> None:
    """Print what each side did, and both times with their ratio."""
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        rows.print(f"wanpipe, round {number}", **one.kinds)
        rows.print(f"diffusers, round {number}", **other.kinds)
        rows.print(
            f"whole, round {number}",
            wanpipe=one.wall,
            diffusers=other.wall,
            ratio=one.wall / other.wall,
            wanpipe_text=one.text,
            diffusers_text=other.text,
            ratio_without_text=(one.wall - one.text) / (other.wall - other.text),
            goal=GOAL,
            text="wanpipe encodes it with a small T5, diffusers reads embeddings",
        )


def options() -> Namespace:
    """Parse the command line."""
    every = parser(__doc__)
    every.add_argument("model", nargs="?", default="1.3b", choices=list(SETTINGS))
    every.add_argument("--rounds", type=int, default=2, help="Videos of each side.")
    every.add_argument("--steps", type=int, help="Denoising steps.")
    every.add_argument("--picture", type=Path, help="Draw timelines in this folder, as SVG.")
    every.add_argument("--folder", type=Path, help="Directory for all files.")
    return every.parse_args()


def main() -> None:
    """Run both sides, and print the rows."""
    args = options()
    steps, guidance = SETTINGS[args.model]
    sizes = MODELS[args.model].tiny() if args.small else MODELS[args.model]
    steps = args.steps or (min(steps, 4) if args.small else steps)
    rows = Rows(args.json)
    rows.print_machine()
    missing = [name for name in NEEDED if find_spec(name) is None]
    with tempfile.TemporaryDirectory(dir=args.folder) as where:
        ours = run_ours(Path(where), sizes, steps, guidance, args.rounds)
        if missing:
            reason = f"{' and '.join(missing)} not installed"
            rows.print("whole", wanpipe=ours[-1].wall, diffusers_skipped=reason)
            return
        theirs = run_theirs(Path(where), sizes, steps, guidance, args.rounds)
    print_rounds(ours, theirs, rows)
    if args.picture is not None:
        args.picture.mkdir(parents=True, exist_ok=True)
        for name, ran in (("wanpipe", ours[-1]), ("diffusers", theirs[-1])):
            title = f"{name}, {args.model}, {steps} steps"
            path = args.picture / f"{name}-{args.model}.svg"
            write_picture(ran.events, ran.wall, path, title)


if __name__ == "__main__":
    main()
