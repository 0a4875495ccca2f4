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
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import PlannedRename, RenameRule, plan_renames
from wanpipe.checkpoints.rules import clip as clip_rules
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import umt5 as umt5_rules
from wanpipe.checkpoints.rules import vae as vae_rules
from wanpipe.checkpoints.state_dict import open_network
from wanpipe.checkpoints.tensors import quote_name
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.clip import CLIP
from wanpipe.models.config import ModelConfig, Quantization
from wanpipe.models.dit import DiT
from wanpipe.models.umt5 import T5
from wanpipe.models.vae import vae
from wanpipe.runtime.documents import Document
from wanpipe.weights.load import FLOAT32_NAMES, PACKED_DTYPE, parameter_shapes
from wanpipe.weights.quantize import quantized_specs
from wanpipe.weights.write import TensorSpec, encode_header, sort_specs

VAE_RULES = {
    "2.1": (vae_rules.RULES_21_ENCODER, vae_rules.RULES_21_DECODER),
    "2.2": (vae_rules.RULES_22_ENCODER, vae_rules.RULES_22_DECODER),
}


@dataclass(frozen=True)
class ComponentPlan:
    """The plan of one component file: its tensors in file order, and where each comes from."""

    name: str
    sources: tuple[Path, ...]
    config: Document  # dimensions of the network
    tensors: tuple[TensorSpec, ...]  # before quantization
    renames: dict[str, PlannedRename] = field(repr=False)
    quantization: Quantization | None = None
    known_parameters: int | None = None  # if the shapes do not give it

    @property
    def file(self) -> str:
        """Name of the file in the model directory."""
        return f"{self.name}.safetensors"

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file: which of its tensors stay float32 when it is loaded."""
        kept = (one.name for one in self.tensors if self.renames[one.name].keep_float32)
        return {FLOAT32_NAMES: " ".join(kept)}

    @property
    def bytes(self) -> int:
        """Size of the file."""
        header = encode_header(self.stored, self.metadata)
        return len(header) + sum(spec.nbytes for spec in self.stored)

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return self.known_parameters or sum(prod(spec.shape) for spec in self.tensors)

    @cached_property
    def stored(self) -> Sequence[TensorSpec]:
        """The tensors of the file, quantized ones in their parts."""
        if self.quantization is None:
            return self.tensors
        return quantized_specs(self.tensors, self.quantization)


def plan_components(checkpoint: Checkpoint, dtype: str) -> list[ComponentPlan]:
    """Plan every network's file; `dtype` is "bfloat16", "float16" or "float32".

    It is the format of the transformers, T5 and CLIP, but for tensors that their rules keep in
    float32; the VAE stays float32, as the official code keeps it. Raises CheckpointError where the
    checkpoint's tensors do not fit.
    """
    encoder, decoder = VAE_RULES[checkpoint.vae.version]
    wanted = NAMES[dtype]
    plans = [
        _plan_component(checkpoint, "t5_encoder", T5(checkpoint.t5), umt5_rules.RULES, wanted),
        _plan_component(checkpoint, "vae", vae.Decoder(checkpoint.vae), decoder, "F32"),
        _plan_component(checkpoint, "vae_encoder", vae.Encoder(checkpoint.vae), encoder, "F32"),
    ]
    if checkpoint.clip is not None:
        rules = clip_rules.rules(checkpoint.clip.layers)
        plans.append(_plan_component(checkpoint, "clip", CLIP(checkpoint.clip), rules, wanted))
    for name in checkpoint.experts:
        plans.append(
            _plan_component(checkpoint, name, DiT(checkpoint.dit), dit_rules.RULES, wanted)
        )
    return plans


def _plan_component(
    checkpoint: Checkpoint, name: str, network: nn.Module, rules: Sequence[RenameRule], dtype: str
) -> ComponentPlan:
    configs: dict[str, Document | None] = {
        "t5_encoder": checkpoint.t5,
        "vae": checkpoint.vae,
        "vae_encoder": checkpoint.vae,
        "clip": checkpoint.clip,
    }
    sources = checkpoint.files["vae" if name == "vae_encoder" else name]
    with open_network(sources) as file:
        renames = plan_renames(file.tensors, rules, parameter_shapes(network), str(sources[0]))
        for rename in renames:
            if (found := file.tensors[rename.source].dtype) not in FLOATS:
                raise CheckpointError(
                    f"{sources[0]}: {quote_name(rename.source)} must hold floating-point numbers, "
                    f"got {found}"
                )
    tensors = sort_specs(
        TensorSpec(one.target, "F32" if one.keep_float32 else dtype, one.shape) for one in renames
    )
    config = configs.get(name) or checkpoint.dit
    by_target = {rename.target: rename for rename in renames}
    return ComponentPlan(name, sources, config, tuple(tensors), by_target)


def plan_copy(directory: Path, config: ModelConfig) -> list[ComponentPlan]:
    """Plan to write every network of a converted model again, unchanged, one tensor at a time."""
    plans = []
    for name, component in config.components.items():
        if component.config is None:
            continue
        path = directory / component.file
        with open_tensors(path) as file:
            stored, float32 = file.tensors, file.metadata.get(FLOAT32_NAMES, "").split()
        plans.append(
            ComponentPlan(
                name=name,
                sources=(path,),
                config=component.config,
                tensors=tuple(TensorSpec(key, one.dtype, one.shape) for key, one in stored.items()),
                renames={
                    key: PlannedRename(key, key, "copy", key in float32, one.shape)
                    for key, one in stored.items()
                },
                known_parameters=component.parameters,
            )
        )
    return plans


def with_quantization(plan: ComponentPlan, quantization: Quantization | None) -> ComponentPlan:
    """Plan a component in fewer bits. Raises UsageError if it is quantized already."""
    if quantization is None:
        return plan
    if any(spec.dtype == PACKED_DTYPE for spec in plan.tensors):
        raise UsageError(
            f"{plan.sources[0]} is quantized already; twice would lose more, so quantize the "
            "original"
        )
    return replace(plan, quantization=quantization)
