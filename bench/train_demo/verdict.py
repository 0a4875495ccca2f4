"""Judges the video of a case: its words, and how well what was given is kept. Needs only NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.train_demo import judge
from bench.train_demo.cases import Case

NAMES = ("color", "shape", "motion", "speed", "background", "all")
GOAL = 28.0  # dB of what is kept


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The judgment of one video."""

    words: dict[str, bool | None]
    seen: judge.Seen
    kept: float = np.inf  # PSNR of what is kept, away from the mask
    edge: float = np.inf  # the same up to the mask
    ends: tuple[float, ...] = ()  # PSNR of every known frame
    overlap: float | None = None
    joint: tuple[float, float] | None = None  # across the joint, and the largest elsewhere
    seam: tuple[float, float] | None = None  # the same where the given frames replace the first


def judge_video(frames: np.ndarray, case: Case) -> Judged:
    """Judge one video of a case."""
    whole = np.array([i for i, m in enumerate(case.mask) if not m.any()], int)
    known = judge.away(case.mask) & (case.mask.max((1, 2)) > 0)[:, None, None]
    partly = (case.mask == 0) & (case.mask.max((1, 2)) > 0)[:, None, None]
    joined = np.concatenate([case.target[: case.extend], frames[case.extend :]])
    everywhere = np.ones(frames[:1].shape[:3], bool)
    return Judged(
        words=judge.score(frames, case.scene),
        seen=judge.look(frames),
        kept=judge.kept_psnr(frames, case.target, known),
        edge=judge.kept_psnr(frames, case.target, partly),
        ends=tuple(
            judge.kept_psnr(frames[i : i + 1], case.target[i : i + 1], everywhere) for i in whole
        ),
        overlap=judge.overlap(frames, case.target) if case.outline else None,
        joint=judge.joint(frames, case.extend) if case.extend else None,
        seam=judge.joint(joined, case.extend) if case.extend else None,
    )


def smooth(pair: tuple[float, float]) -> bool:
    """Return whether a joint is no larger than other differences; 10 % or 0.25 of 255 is noise."""
    return pair[0] <= max(1.1 * pair[1], pair[1] + 0.25)


def spread(name: str, values: list[float]) -> str:
    """Describe PSNRs: the mean, the worst and how many reach the goal."""
    if not values:
        return ""
    good = sum(v >= GOAL for v in values)
    return f"{name} {np.mean(values):.1f} dB, worst {min(values):.1f}, {good}/{len(values)}; "


def describe(judged: list[Judged]) -> str:
    """Describe what the columns of words do not show."""
    text = spread("kept", [j.kept for j in judged if np.isfinite(j.kept)])
    text += spread("to the edge", [j.edge for j in judged if np.isfinite(j.edge)])
    for place, name in ((0, "first known frame"), (-1, "last known frame")):
        text += spread(
            name, [j.ends[place] for j in judged if j.ends and (place == 0 or j.ends[1:])]
        )
    shares = [j.overlap for j in judged if j.overlap is not None]
    if shares:
        good = sum(s >= 0.8 for s in shares)
        text += f"overlap {np.mean(shares):.2f}, worst {min(shares):.2f}, {good}/{len(shares)}; "
    for place in ("joint", "seam"):
        pairs = [getattr(j, place) for j in judged if getattr(j, place)]
        if pairs:
            ratio = np.median([a / max(b, 1e-6) for a, b in pairs])
            good = sum(map(smooth, pairs))
            text += f"{place} smooth {good}/{len(pairs)}, median ratio {ratio:.2f}; "
    return text.rstrip("; ")


def report(name: str, judged: list[Judged], chosen: list[Case], seconds: float) -> None:
    """Print the row of a task, and its misses as comments."""
    shares = []
    for key in NAMES:
        answers = [j.words[key] for j in judged if j.words[key] is not None]
        shares.append(f"{100 * sum(map(bool, answers)) / max(len(answers), 1):.0f} %")
    print(f"| {name} | {len(judged)} | {' | '.join(shares)} | {describe(judged)} |", flush=True)
    for i, (j, case) in enumerate(zip(judged, chosen, strict=True)):
        wrong = [key for key in NAMES if j.words[key] is False]
        jump = (
            []
            if j.joint is None or smooth(j.joint)
            else ["joint {:.2f} to {:.2f}".format(*j.joint)]
        )
        low = [f"{v:.1f} dB" for v in (j.kept, *j.ends) if v < GOAL]
        if wrong or jump or low:
            found = f"{j.seen.color} {j.seen.shape} {j.seen.motion} {j.seen.speed}"
            print(f"<!-- {i} {case.prompt!r}: {', '.join(wrong + jump + low)}; {found} -->")
    print(f"<!-- {seconds:.0f} s -->", flush=True)
