"""Plans the component files of a model: which tensors each gets, from where, in which format.

Everything is checked here, before the first byte is written. Reads headers only; networks are built
for the shapes of their parameters and never evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

import mlx.nn as nn

from wanpipe.checkpoints.detect import Checkpoint
from wanpipe.checkpoints.dtypes import FLOATS, NAMES
from wanpipe.checkpoints.layouts import open_network
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import Move, Row, plan
from wanpipe.checkpoints.rules import clip as clip_rules
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import umt5 as umt5_rules
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.checkpoints.tensors import shown
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models import vae
from wanpipe.models.clip import CLIP
from wanpipe.models.config import ModelConfig, Quantization
from wanpipe.models.dit import DiT
from wanpipe.models.umt5 import T5
from wanpipe.runtime.documents import Document
from wanpipe.weights.load import CODES, FULL, parameter_shapes
from wanpipe.weights.quantize import packed
from wanpipe.weights.write import Slot, arranged, header

VAE_ROWS = {
    "2.1": (vae_rules.ROWS_21_ENCODER, vae_rules.ROWS_21_DECODER),
    "2.2": (vae_rules.ROWS_22_ENCODER, vae_rules.ROWS_22_DECODER),
}


@dataclass(frozen=True)
class Job:
    """One component file to be written: its tensors in file order, and where each comes from."""

    name: str
    sources: tuple[Path, ...]
    config: Document  # dimensions of the network
    slots: tuple[Slot, ...]  # as they are before quantisation
    moves: dict[str, Move] = field(repr=False)
    quantization: Quantization | None = None
    known: int | None = None  # parameters, where the slots do not tell

    @property
    def file(self) -> str:
        """Name of the file in the model directory."""
        return f"{self.name}.safetensors"

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says beside its tensors: which of them stay float32 when it is loaded."""
        return {FULL: " ".join(slot.name for slot in self.slots if self.moves[slot.name].full)}

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(header(self.stored, self.metadata)) + sum(slot.nbytes for slot in self.stored)

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return self.known or sum(prod(slot.shape) for slot in self.slots)

    @cached_property
    def stored(self) -> Sequence[Slot]:
        """The tensors of the file."""
        return packed(self.slots, self.quantization) if self.quantization else self.slots


def plan_components(checkpoint: Checkpoint, dtype: str) -> list[Job]:
    """Plan every network's file; `dtype` is "bfloat16", "float16" or "float32".

    It is the format of the transformers, T5 and CLIP, but for tensors that their rules mark as
    full; the VAE stays float32, as the official code keeps it. Raises CheckpointError where the
    checkpoint's tensors do not fit.
    """
    encoder, decoder = VAE_ROWS[checkpoint.vae.version]
    wanted = NAMES[dtype]
    jobs = [
        _job(checkpoint, "t5_encoder", T5(checkpoint.t5), umt5_rules.ROWS, wanted),
        _job(checkpoint, "vae", vae.Decoder(checkpoint.vae), decoder, "F32"),
    ]
    if checkpoint.variant.task != "t2v":
        jobs.append(_job(checkpoint, "vae_encoder", vae.Encoder(checkpoint.vae), encoder, "F32"))
    if checkpoint.clip is not None:
        rows = clip_rules.rows(checkpoint.clip.layers)
        jobs.append(_job(checkpoint, "clip", CLIP(checkpoint.clip), rows, wanted))
    for name in checkpoint.experts:
        jobs.append(_job(checkpoint, name, DiT(checkpoint.dit), dit_rules.ROWS, wanted))
    return jobs


def _job(
    checkpoint: Checkpoint, name: str, network: nn.Module, rows: Sequence[Row], dtype: str
) -> Job:
    configs: dict[str, Document | None] = {
        "t5_encoder": checkpoint.t5,
        "vae": checkpoint.vae,
        "vae_encoder": checkpoint.vae,
        "clip": checkpoint.clip,
    }
    sources = checkpoint.files["vae" if name == "vae_encoder" else name]
    with open_network(sources) as file:
        moves = plan(file.tensors, rows, parameter_shapes(network), str(sources[0]))
        for move in moves:
            if (found := file.tensors[move.source].dtype) not in FLOATS:
                raise CheckpointError(
                    f"{sources[0]}: {shown(move.source)} must hold floating-point numbers, "
                    f"got {found}"
                )
    slots = arranged(Slot(move.target, "F32" if move.full else dtype, move.shape) for move in moves)
    config = configs.get(name) or checkpoint.dit
    return Job(name, sources, config, tuple(slots), {move.target: move for move in moves})


def plan_copy(directory: Path, config: ModelConfig) -> list[Job]:
    """Plan to write every network of a converted model again, tensor by tensor as it is."""
    jobs = []
    for name, component in config.components.items():
        if component.config is None:
            continue
        path = directory / component.file
        with open_tensors(path) as file:
            full = file.metadata.get(FULL, "").split()
            moves = {
                tensor: Move(tensor, tensor, "copy", tensor in full, info.shape)
                for tensor, info in file.tensors.items()
            }
            slots = tuple(Slot(tensor, i.dtype, i.shape) for tensor, i in file.tensors.items())
        known = component.parameters
        jobs.append(Job(name, (path,), component.config, slots, moves, known=known))
    return jobs


def quantized(job: Job, spec: Quantization | None) -> Job:
    """Plan a component in fewer bits. Raises UsageError where it has been quantised before."""
    if spec is None:
        return job
    if any(slot.dtype == CODES for slot in job.slots):
        raise UsageError(
            f"{job.sources[0]} is quantised already; twice would lose more, so quantise the "
            "original"
        )
    return replace(job, quantization=spec)
