"""Makes videos from images, films and masks with PyTorch, and judges them.

    python -m bench.train_demo.evaluate_tasks --checkpoints wanpipe/demo/checkpoints \\
        [--count 50] [--models i2v vace] [--tasks i2v-first vace-control] [--sheets DIR]

Every task uses the 50 held-out prompts. Prints a Markdown row for each. With --sheets, writes a
picture for each: the given frames on the left, the video on the right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.train_demo import cases, evaluate
from bench.train_demo.cases import Case
from bench.train_demo.data import NEGATIVE, encode
from bench.train_demo.evaluate import Networks
from bench.train_demo.sampler import Settings
from bench.train_demo.tasks import image_condition, vace_context
from bench.train_demo.verdict import NAMES, judge_video, report

ROWS, SHOWN = 10, (0, 4, 8, 12, 16)  # videos and frames on a sheet


@torch.no_grad()
def decoded(model: Networks, one: Case, device: torch.device) -> Case:
    """Encode and decode the film of a case, as if the demo had made it."""
    clip = torch.from_numpy(one.target)[None].to(device).float() / 127.5 - 1
    made = model.vae.decode(model.vae.moments(clip)[0]).clamp(-1, 1)[0]
    film = ((made + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return replace(one, target=film, source=np.where(one.mask[..., None] > 0, one.source, film))


@torch.no_grad()
def inputs(model: Networks, chosen: list[Case], device: torch.device) -> Tensor:
    """Encode what the cases give: the condition of I2V or the context of VACE."""

    def clips(frames: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(frames)).to(device).float() / 127.5 - 1

    mask = torch.from_numpy(np.stack([c.mask for c in chosen])).to(device).float()[..., None]
    if not model.low.config.vace_layers:
        known = mask.amax((2, 3, 4)) == 0
        return image_condition(model.vae, clips([c.target for c in chosen]), known).float()
    references = None
    if chosen[0].reference is not None:
        references = clips([c.reference for c in chosen if c.reference is not None])[:, None]
    source = clips([c.source for c in chosen]) * chosen[0].film
    return vace_context(model.vae, source, mask, references).float()


def picture(path: Path, chosen: list[Case], videos: np.ndarray) -> None:
    """Write a sheet of some cases: the given frames, then the video's."""
    from PIL import Image

    rows = []
    for i in np.linspace(0, len(chosen) - 1, min(ROWS, len(chosen))).astype(int):
        case = chosen[i]
        parts = [case.source[k] for k in SHOWN] + [videos[i][k] for k in SHOWN]
        still = case.source[0] if case.reference is None else case.reference
        parts = [still, *parts]
        rows.append(np.concatenate([np.pad(p, ((1, 1), (1, 1), (0, 0))) for p in parts], 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def run(name: str, model: Networks, args: argparse.Namespace, pool: Executor | None) -> None:
    """Make, judge and report the videos of one task."""
    begin, device = time.monotonic(), model.t5.norm.weight.device
    prepare: Callable[[int], Case] = cases.CASES[name]
    chosen = [prepare(i) for i in range(0, 50, max(1, 50 // args.count))][: args.count]
    chosen = [decoded(model, c, device) if c.decoded else c for c in chosen]
    tokenizer = args.checkpoints / "t2v/google/umt5-xxl/tokenizer.json"
    ids = encode(tokenizer, [NEGATIVE, *(c.prompt for c in chosen)])
    ids = torch.from_numpy(ids).long().to(device)
    references = int(chosen[0].reference is not None)
    seeds = [args.seed + c.number for c in chosen]
    start = evaluate.noise(seeds, device, references)
    given = inputs(model, chosen, device)
    s = Settings(steps=args.steps, guidance=args.guidance, shift=args.shift)
    videos = evaluate.make_videos(model, ids[1:], ids[:1], start, s, given)
    one_by_one: Callable = pool.map if pool else map
    judged = list(one_by_one(judge_video, videos, chosen))
    report(name, judged, chosen, time.monotonic() - begin)
    if args.sheets:
        picture(args.sheets / f"{name}.png", chosen, videos)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--models", nargs="*", default=["i2v", "vace"])
    parser.add_argument("--tasks", nargs="*", help="Default: all of the models.")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2)
    parser.add_argument("--shift", type=float, default=5)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--processes", type=int, default=0, help="Processes of the judge.")
    return parser.parse_args()


def main() -> None:
    """Judge every task."""
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    root = args.checkpoints
    t5, vae = evaluate.load(root / "t2v", device)
    models = {}
    if "i2v" in args.models:
        models["i2v"] = evaluate.load_pair(root / "i2v-a14b", t5, vae, 0.9)
    if "vace" in args.models:
        models["vace"] = evaluate.load_vace(root / "t2v", root / "vace", t5, vae)
    pool = None
    if args.processes:
        pool = ProcessPoolExecutor(args.processes, mp_context=get_context("spawn"))
    print(f"| task | videos | {' | '.join(NAMES)} | more |\n|{'---|' * (len(NAMES) + 3)}")
    for name in args.tasks or cases.CASES:
        if (kind := name.partition("-")[0]) in models:
            run(name, models[kind], args, pool)
    if pool:
        pool.shutdown()


if __name__ == "__main__":
    main()
