"""The tiny Wan that ships: checkpoints in the official layout, their world, a judge of films."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
T2V = CHECKPOINTS / "t2v"
