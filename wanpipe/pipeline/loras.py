"""Which LoRAs a run takes: those given, else those of the run that is continued.

Decides by names and hashes; a LoRA that takes no part is not looked at. Reads no numbers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import CheckpointError, UsageError
from wanpipe.pipeline.chain import HIGH, LOW
from wanpipe.pipeline.settings import Params
from wanpipe.store import Run, Store
from wanpipe.store.runs import Lora
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    from wanpipe.weights.lora import Fit

# by expert, in the order in which they are added: the field of Params
FIELDS = {None: "lora", HIGH: "lora_high", LOW: "lora_low"}


@dataclass(frozen=True)
class Choice:
    """The LoRAs of a run, and where the file of each content hash lies."""

    loras: tuple[Lora, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


def choose(model: Model, run: Run | None, params: Params, store: Store) -> Choice:
    """Choose the LoRAs of every option that is given, and for the others those of the run.

    Strength 0 leaves a LoRA out. Raises UsageError for a file that is not there, a strength that
    is no number, or an expert that the model does not have.
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
                f"--{name.replace('_', '-')} is for models with two experts, "
                f"{model.config.variant} has one; use --lora"
            )
        for path, strength in given:
            check(path, strength)
            if strength:
                digest = store.memo.hash(path)
                files[digest] = str(path.resolve())
                lora = Lora(name=path.name, hash=digest, strength=float(strength), expert=expert)
                chosen.append(lora)
    return Choice(
        tuple(chosen), {lora.hash: files[lora.hash] for lora in chosen if lora.hash in files}
    )


def check(path: Path, strength: float) -> None:
    """Raise UsageError for what cannot be a LoRA at a strength."""
    if not math.isfinite(strength):
        raise UsageError(f"strength of LoRA {path} must be a finite number, got {strength}; use 1")
    if not path.is_file():
        raise UsageError(f"LoRA {path} is not a file; give the path of a .safetensors file")


def fitted(
    model: Model, choice: Choice, experts: Iterable[str], store: Store
) -> "dict[str, list[tuple[Fit, float]]]":
    """Fit each expert's LoRAs to the model, by headers alone, in the order in which they are added.

    Raises CheckpointError for a file that is gone, has changed or does not fit.
    """
    from wanpipe.models.dit import DiT
    from wanpipe.weights.load import parameter_shapes
    from wanpipe.weights.lora import fit, read_lora

    if not choice.loras:
        return {}
    shapes = parameter_shapes(DiT(model.config.dit))
    fits: dict[str, Fit] = {}
    acting: dict[str, list[tuple[Fit, float]]] = {}
    for expert in sorted(set(experts)):
        for lora in choice.loras:
            if lora.expert not in (None, expert):
                continue
            if lora.hash not in fits:
                fits[lora.hash] = fit(read_lora(locate(lora, choice, store)), shapes)
            acting.setdefault(expert, []).append((fits[lora.hash], lora.strength))
    return acting


def locate(lora: Lora, choice: Choice, store: Store) -> Path:
    """Path of a LoRA's file. Raises CheckpointError where it is gone or has changed."""
    path = Path(choice.files.get(lora.hash, lora.name))
    option = f"--{FIELDS[lora.expert].replace('_', '-')}"
    if not path.is_file():
        raise CheckpointError(
            f"LoRA {lora.name} was at {path} and is gone; say where it is with {option}"
        )
    if store.memo.hash(path) != lora.hash:
        raise CheckpointError(
            f"LoRA {path} has changed since the run was begun; say which to use with {option}"
        )
    return path
