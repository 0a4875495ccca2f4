"""The scale of a LoRA's products where no alpha tensor gives it: alpha / rank, as PEFT has it.

Alpha is in the header's metadata, as diffusers and PEFT write it, or in PEFT's adapter_config.json
beside the file. Reads no tensors.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from wanpipe.checkpoints.dimensions import JSON_LIMIT
from wanpipe.checkpoints.tensors import quote_name
from wanpipe.errors import CheckpointError
from wanpipe.runtime.documents import DocumentError, convert, decode, load

METADATA_KEY = "lora_adapter_metadata"  # of diffusers: PEFT's config as JSON in the header
CONFIG_FILE = "adapter_config.json"  # of PEFT, beside adapter_model.safetensors
FLAT_KEYS = ("lora_alpha", "r", "use_rslora")  # each an entry of the header's metadata
PLAIN_PATTERN = re.compile(r"\^?[\w.]+\$?")

Alpha = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of PEFT's LoraConfig that change a result; the others are ignored."""

    peft_type: str = "LORA"
    lora_alpha: Alpha | None = None
    use_rslora: bool = False
    use_dora: bool = False
    alpha_pattern: dict[str, Alpha] | None = None


@dataclass(frozen=True, kw_only=True)
class LoraScale:
    """The alpha of every module of a LoRA, and the name of the document that gives it."""

    source: str
    alpha: float
    root: float = 1.0  # the rank counts to this power: 0.5 for rank-stabilized LoRAs
    patterns: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def _order(self) -> dict[str, int]:
        return {pattern: place for place, pattern in enumerate(self.patterns)}

    def of(self, module: str, rank: int) -> float:
        """Return the scale of a module by its name in the file."""
        return self.alpha_of(module) / float(rank**self.root)

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module: that of the first pattern that is the end of its name."""
        parts = module.split(".")
        names = [f"^{module}", *(".".join(parts[start:]) for start in range(len(parts)))]
        found = [name for name in names if name in self.patterns]
        return self.patterns[min(found, key=self._order.__getitem__)] if found else self.alpha


def read_scale(path: Path, metadata: Mapping[str, str], second: bool) -> LoraScale | None:
    """Read the scale of a LoRA file, or of its `second` half; None where no document gives one.

    Raises CheckpointError for a document that cannot be read, or describes another adapter.
    """
    for source, config in _configs(path, metadata, second):
        subject = f"{path}: {source}" if source != CONFIG_FILE else str(path.with_name(source))
        if config.use_dora or config.peft_type != "LORA":
            kind = "DoRA" if config.use_dora else quote_name(config.peft_type)
            raise CheckpointError(
                f"{subject} describes a {kind} adapter; use a LoRA, or have it merged into full "
                "differences"
            )
        if config.lora_alpha is not None:
            return LoraScale(
                source=source,
                alpha=config.lora_alpha,
                root=0.5 if config.use_rslora else 1.0,
                patterns=_plain_patterns(config.alpha_pattern or {}, subject),
            )
    return None


def _configs(
    path: Path, metadata: Mapping[str, str], second: bool
) -> Iterator[tuple[str, AdapterConfig]]:
    """Yield each document that describes the adapter, with its name."""
    try:
        if METADATA_KEY in metadata:
            whole = decode(metadata[METADATA_KEY], dict[str, Any])
            yield METADATA_KEY, convert(_of_transformer(whole, second), AdapterConfig)
        if "lora_alpha" in metadata:
            flat = {key: metadata[key] for key in FLAT_KEYS if key in metadata}
            yield "metadata lora_alpha", convert(flat, AdapterConfig, strict=False)
    except DocumentError as error:
        raise CheckpointError(
            f"{path} has metadata that describe no LoRA: {error}; download it again"
        ) from error
    config = path.with_name(CONFIG_FILE)
    if os.path.lexists(config) and _belongs(path):
        try:
            yield CONFIG_FILE, load(config, AdapterConfig, JSON_LIMIT)
        except OSError as error:
            raise CheckpointError(f"{config} cannot be read: {error.strerror}") from error
        except DocumentError as error:
            raise CheckpointError(
                f"{config} describes no LoRA: {error}; download it again"
            ) from error


def _belongs(path: Path) -> bool:
    """Whether the adapter_config.json beside a file is for it: PEFT's name, or no other file."""
    return path.stem == "adapter_model" or len(list(path.parent.glob("*.safetensors"))) <= 1


def _of_transformer(whole: dict[str, Any], second: bool) -> dict[str, Any]:
    """Take the fields of one transformer, which diffusers writes as `transformer.lora_alpha`."""
    if "lora_alpha" in whole:
        return whole
    names = ("transformer_2", "transformer") if second else ("transformer", "transformer_2")
    for name in names:
        prefix = f"{name}."
        fields = {key[len(prefix) :]: whole[key] for key in whole if key.startswith(prefix)}
        if fields:
            return fields
    return {}


def _plain_patterns(patterns: dict[str, float], subject: str) -> dict[str, float]:
    """Return patterns as ends of names. Raises CheckpointError for other regular expressions,
    which could take for ever.
    """
    plain = {
        pattern.replace("\\.", ".").removeprefix(".*."): alpha
        for pattern, alpha in patterns.items()
    }
    for pattern in plain:
        if not PLAIN_PATTERN.fullmatch(pattern):
            raise CheckpointError(
                f"{subject}: alpha_pattern must have names of modules, got {quote_name(pattern)}; "
                "use a LoRA with an alpha for each module"
            )
    return {pattern.removesuffix("$"): alpha for pattern, alpha in plain.items()}
