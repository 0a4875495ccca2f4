"""The LoRAs of a run: the given ones, or else those of the continued run.

Compares names and content hashes. Reads the headers of files, but no weights.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.denoising.settings import Params
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import HIGH, LOW
from wanpipe.store import Run, Settings, Store
from wanpipe.store.runs import Lora
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    from wanpipe.weights.lora import LoraMatch

# the field of Params by expert, in the order in which LoRAs are added
FIELDS = {None: "lora", HIGH: "lora_high", LOW: "lora_low"}


def choose_loras(
    model: Model, run: Run | None, params: Params, store: Store
) -> tuple[tuple[Lora, ...], dict[str, str]]:
    """Return the LoRAs of a run, and the path of the file for each content hash.

    An option that is not given takes the LoRAs of the continued run. A LoRA with strength 0 is left
    out. Raises UsageError for a missing file, an invalid strength, or an expert that the model does
    not have.
    """
    remembered: tuple[Lora, ...] = ()
    files: dict[str, str] = {}
    if run is not None:
        remembered, files = run.settings.loras, dict(run.loras)
    chosen: list[Lora] = []
    for expert, name in FIELDS.items():
        given: tuple[tuple[Path, float], ...] = getattr(params, name)
        if not given:
            chosen += [lora for lora in remembered if lora.expert == expert]
        elif expert is not None and expert not in model.config.experts:
            raise UsageError(
                f"{option(expert)} is for models with two experts, {model.config.variant} has one; "
                "use --lora"
            )
        for path, strength in given:
            check_lora(path, strength)
            if strength:
                digest = store.hash_cache.hash(path)
                files[digest] = str(path.resolve())
                lora = Lora(name=path.name, hash=digest, strength=float(strength), expert=expert)
                chosen.append(lora)
    used = {lora.hash: files[lora.hash] for lora in chosen if lora.hash in files}
    return tuple(chosen), used


def check_lora(path: Path, strength: float) -> None:
    """Raise UsageError for a strength that is not finite or a path that is not a file."""
    if not math.isfinite(strength):
        raise UsageError(f"strength of LoRA {path} must be a finite number, got {strength}; use 1")
    if not path.is_file():
        raise UsageError(f"LoRA {path} is not a file; give the path of a .safetensors file")


def match_loras(
    model: Model,
    settings: Settings,
    files: Mapping[str, str],
    experts: Iterable[str],
    store: Store,
) -> "dict[str, list[tuple[LoraMatch, float]]]":
    """Match each expert's LoRAs to its layers, in the order in which they are added.

    Raises CheckpointError for a file that is gone, has changed or does not fit the model.
    """
    from wanpipe.models.dit import DiT
    from wanpipe.weights.load import parameter_shapes
    from wanpipe.weights.lora import match_lora, read_lora

    if not settings.loras:
        return {}
    shapes = parameter_shapes(DiT(model.config.dit))
    matches: dict[str, LoraMatch] = {}
    matched: dict[str, list[tuple[LoraMatch, float]]] = {}
    for expert in sorted(set(experts)):
        for lora in settings.loras_for(expert):
            if lora.hash not in matches:
                matches[lora.hash] = match_lora(read_lora(locate(lora, files, store)), shapes)
            matched.setdefault(expert, []).append((matches[lora.hash], lora.strength))
    return matched


def locate(lora: Lora, files: Mapping[str, str], store: Store) -> Path:
    """Return the path of a LoRA's file. Raises CheckpointError if it is gone or has changed."""
    path = Path(files.get(lora.hash, lora.name))
    if not path.is_file():
        raise CheckpointError(
            f"LoRA {lora.name} was at {path} and is gone; say where it is with "
            f"{option(lora.expert)}"
        )
    if store.hash_cache.hash(path) != lora.hash:
        raise CheckpointError(
            f"LoRA {path} has changed since the run was begun; say which to use with "
            f"{option(lora.expert)}"
        )
    return path


def option(expert: str | None) -> str:
    """Return the command line option of an expert's LoRAs."""
    return f"--{FIELDS[expert].replace('_', '-')}"
