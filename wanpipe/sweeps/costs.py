"""What the nodes of a sweep take: time, memory, and room on the disk."""

from dataclasses import dataclass
from math import prod

from msgspec import UNSET

from wanpipe.models.config import ModelConfig
from wanpipe.models.geometry import latent_shape
from wanpipe.pipeline.dry_run import DryRun
from wanpipe.pipeline.plan import Work
from wanpipe.store import Entry, Settings, Store

FULL = 4  # bytes of a float32
STATE = {"unipc": 2, "dpm++": 0, "euler": 0}  # arrays of a solver in each step
STEP_CACHE = 2  # arrays of it


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network of a node: its content hash, and what one unit of its work takes.

    `place` is 0 for the first expert of a run, and 1 for the second. `speed` is in operations per
    second, None if it is not known.
    """

    hash: str
    place: int = 0
    memory: int = 0
    flops: float = 0.0
    speed: float | None = None

    def seconds(self, units: int) -> float | None:
        """Return the expected time of some units; None if it is not known."""
        return units * self.flops / self.speed if self.speed else None


class Speeds:
    """The operations per second of each stage, from the latest entries, read once."""

    def __init__(self, store: Store) -> None:
        self.dry_run = DryRun(store)
        self.known: dict[tuple[str, int], float | None] = {}

    def of(self, work: Work) -> float | None:
        """Return the speed of some work; None if no entry tells it."""
        devices = work.plan.way.devices
        asked = (work.stage, devices)
        if asked not in self.known:
            speed = self.dry_run.speed(*asked)
            if speed is None and devices > 1 and (alone := self.dry_run.speed(work.stage)):
                speed = alone * devices  # at best
            self.known[asked] = speed
        return self.known[asked]


def text_bytes(entry: Entry, config: ModelConfig) -> int:
    """Return the bytes of a text entry."""
    made = entry.material
    return (len(made.prompt) + len(made.negative)) * config.t5.dim * FULL


def input_bytes(entry: Entry, config: ModelConfig) -> int:
    """Return the bytes of an image or a video entry: its latent channels, and CLIP's tokens."""
    made, dit = entry.material, config.dit
    channels = dit.in_dim - dit.out_dim or config.vae.z_dim
    if dit.vace_in_dim is not UNSET:
        channels = dit.vace_in_dim
    shape = latent_shape(made.width, made.height, made.num_frames, config.vae.stride)
    clip = 0 if dit.clip_dim is None else dit.clip_tokens * dit.clip_dim
    return (channels * prod(shape) + clip) * FULL


def step_bytes(settings: Settings, config: ModelConfig) -> int:
    """Return the bytes of a step of a run: its latent, x0 and the state of the solver."""
    frames, rows, columns = latent_shape(*settings.size, config.vae.stride)
    size = (frames + (settings.reference_frames or 0)) * rows * columns * config.vae.z_dim
    arrays = 2 + STATE.get(settings.scheduler, 0)
    arrays += STEP_CACHE if settings.step_cache is not None else 0
    return arrays * size * FULL


def frame_bytes(settings: Settings) -> int:
    """Return the bytes of a run's frames, before compression."""
    return settings.width * settings.height * settings.num_frames * 3
