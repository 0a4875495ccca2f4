"""What rank 0 tells the other ranks of a group, and what they compare before they work."""

import socket
from pathlib import Path
from typing import Any

import mlx.core as mx

from wanpipe.backend.device import is_cuda, is_exact, is_metal, recommended_memory
from wanpipe.pipeline.budget import ExpertPlan
from wanpipe.runtime.documents import Count, Document, Finite, Hash, Text
from wanpipe.runtime.version import version
from wanpipe.sampling.nag import Nag
from wanpipe.store import Settings, key_of
from wanpipe.store.keys import hash_file

Shape = tuple[Count, ...]


class Begin(Document, frozen=True, kw_only=True):
    """A model and the hashes of its experts, their LoRAs and their memory plans."""

    model: Text
    cache: Text
    experts: dict[str, Hash]
    settings: Settings
    lora_files: dict[Hash, Text]
    plans: dict[str, ExpertPlan]


class Arrays(Document, frozen=True, kw_only=True):
    """The shapes of the arrays that the next steps are conditioned on, in order."""

    arrays: dict[str, Shape]


class Step(Document, frozen=True, kw_only=True):
    """What a velocity depends on, beside the latent (C, F, H, W) of this shape."""

    expert: str
    timesteps: tuple[Finite, ...]
    guide_scale: Finite
    context_scale: Finite | None
    nag: Nag | None
    shape: Shape


class Identity(Document, frozen=True, kw_only=True):
    """What all ranks must have in common, and the memory that one recommends, and its host."""

    wanpipe: Text
    code: Hash
    mlx: Text
    kind: Text
    exact: bool
    memory: Count
    host: Text


def identity() -> dict[str, Any]:
    """Return the identity of this rank."""
    return {
        "wanpipe": version(),
        "code": code_hash(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # missing in MLX's type stubs
        "kind": "CUDA" if is_cuda() else "Metal" if is_metal() else "CPU",
        "exact": is_exact(),
        "memory": recommended_memory(),
        "host": socket.gethostname(),
    }


def code_hash() -> str:
    """Return the content hash of wanpipe's modules: a version may have been changed by hand."""
    top = Path(__file__).parents[1]
    files = sorted(top.rglob("*.py"))
    return key_of([[file.relative_to(top).as_posix(), hash_file(file)] for file in files])


def differences(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """Say in what another rank differs from this one; "" if in nothing that matters."""
    names = {
        "wanpipe": "wanpipe",
        "mlx": "MLX",
        "kind": "a device of kind",
        "exact": "WANPIPE_EXACT",
    }
    found = [
        f"{words} {other.get(name)} and rank 0 {mine[name]}"
        for name, words in names.items()
        if other.get(name) != mine[name]
    ]
    if other.get("wanpipe") == mine["wanpipe"] and other.get("code") != mine["code"]:
        found.insert(0, f"other code of wanpipe {mine['wanpipe']}")
    return ", ".join(found)
