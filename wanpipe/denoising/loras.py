"""The LoRAs of a run: the given ones, or by default those of the continued run.

Compares names and content hashes. Reads the headers of files, but no weights.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.denoising.settings import Params
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import HIGH, LOW
from wanpipe.store import Run, Settings, Store
from wanpipe.store.runs import Lora
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    from wanpipe.weights.lora_match import LoraMatch

PEFT_FILE = "adapter_model.safetensors"  # beside its adapter_config.json
# the field of Params by expert, in the order in which LoRAs are added
FIELDS = {None: "lora", HIGH: "lora_high", LOW: "lora_low"}


def choose_loras(
    model: Model, run: Run | None, params: Params, store: Store
) -> tuple[tuple[Lora, ...], dict[str, str]]:
    """Return the LoRAs of a run, and where the file of each lies, by its hash.

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
            chosen += [lora for lora in remembered if given_for(lora) == expert]
        elif expert is not None and expert not in model.config.experts:
            raise UsageError(
                f"{option(expert)} is for models with two experts, {model.config.variant} has one; "
                "use --lora"
            )
        for path, strength in given:
            file = find_file(path, strength)
            if not strength:
                continue
            name = path.name if path.exists() else path.name.rpartition(":")[2]
            for lora in identify(name, file, float(strength), expert, model, store):
                files[lora.hash] = str(lasting_path(file))
                chosen.append(lora)
    used = {lora.hash: files[lora.hash] for lora in chosen if lora.hash in files}
    return tuple(chosen), used


def given_for(lora: Lora) -> str | None:
    """Return the expert whose option gave a LoRA; None: the option for all."""
    return None if lora.half is True else lora.expert


def find_file(path: Path, strength: float = 1.0) -> Path:
    """Return the file of a LoRA: a path, ORG/NAME:FILE in the Hub's cache, or in a folder that PEFT
    wrote its one tensor file.

    Raises UsageError for a strength that is not finite or a path that is none of these, and
    CheckpointError for a repository or file that is not in the Hub's cache.
    """
    from wanpipe.checkpoints.hub.cache import locate_file

    if not math.isfinite(strength):
        raise UsageError(f"strength of LoRA {path} must be a finite number, got {strength}; use 1")
    path = locate_file(path)
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(f"LoRA {path} is not a file; give the path of a .safetensors file")
        return path
    from wanpipe.checkpoints.folders import visible

    found = (
        [path / PEFT_FILE] if (path / PEFT_FILE).is_file() else visible(path.glob("*.safetensors"))
    )
    if len(found) != 1:
        raise UsageError(
            f"LoRA folder {path} must hold {PEFT_FILE} or one .safetensors file, got {len(found)}; "
            "give the path of the file"
        )
    return found[0]


def lasting_path(file: Path) -> Path:
    """Return a path of a LoRA's file that a run can remember."""
    from wanpipe.checkpoints.hub.cache import repository_of

    # a blob of the Hub's cache has neither a suffix nor an adapter_config.json beside it
    return file.resolve() if repository_of(file) is None else file.absolute()


def identify(
    name: str, file: Path, strength: float, expert: str | None, model: Model, store: Store
) -> list[Lora]:
    """Return the LoRAs that one option gives: one, or those of a file with one for each expert.

    Raises CheckpointError for a file that is no LoRA, or holds none for the expert.
    """
    from wanpipe.weights.lora import identities, read_lora

    keys = identities(read_lora(file), store.hash_cache.hash(file))
    if None in keys:
        return [Lora(name=name, hash=keys[None], strength=strength, expert=expert)]
    if len(model.config.experts) == 1:
        raise CheckpointError(
            f"LoRA {file} is for the two experts of Wan2.2 A14B, {model.config.variant} has one "
            "transformer; use a LoRA that was made for this model"
        )
    if expert is None:
        return [
            Lora(name=name, hash=key, strength=strength, expert=half, half=True)
            for half, key in keys.items()
        ]
    if expert not in keys:
        raise CheckpointError(
            f"LoRA {file} has nothing for the {expert.replace('_', ' ')}; use --lora, which gives "
            "each expert its own"
        )
    return [Lora(name=name, hash=keys[expert], strength=strength, expert=expert)]


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
    from wanpipe.weights.lora import read_lora
    from wanpipe.weights.lora_match import match_lora

    if not settings.loras:
        return {}
    shapes = parameter_shapes(DiT(model.config.dit))
    matches: dict[str, LoraMatch] = {}
    matched: dict[str, list[tuple[LoraMatch, float]]] = {}
    for expert in sorted(set(experts)):
        for lora in settings.loras_for(expert):
            if lora.hash not in matches:
                whole = read_lora(locate(lora, files, store))
                match = match_lora(whole.of(expert), shapes)
                matches[lora.hash] = replace(match, hash=lora.hash)
            matched.setdefault(expert, []).append((matches[lora.hash], lora.strength))
    return matched


def locate(lora: Lora, files: Mapping[str, str], store: Store) -> Path:
    """Return the path of a LoRA's file. Raises CheckpointError if it is gone or has changed."""
    from wanpipe.weights.lora import identities, read_lora

    path = Path(files.get(lora.hash, lora.name))
    if not path.is_file():
        raise CheckpointError(
            f"LoRA {lora.name} was at {path} and is gone; say where it is with "
            f"{option(given_for(lora))}"
        )
    digest = store.hash_cache.hash(path)
    if lora.hash not in identities(read_lora(path), digest).values():
        if lora.hash == digest:  # another version made the existing steps
            raise CheckpointError(
                f"LoRA {path} has a scale that this run did not use so far; give it with "
                f"{option(given_for(lora))} to go on with its scale"
            )
        raise CheckpointError(
            f"LoRA {path} has changed since the run was begun; say which to use with "
            f"{option(given_for(lora))}"
        )
    return path


def option(expert: str | None) -> str:
    """Return the command line option of an expert's LoRAs."""
    return f"--{FIELDS[expert].replace('_', '-')}"
