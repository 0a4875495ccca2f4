"""The tables of README and docs that follow from the code: peaks of memory, sizes of files."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from bench.sizes import CLIP_H, DITS, HD, T5_XXL, TI2V_HD, VAE_21, VAE_22, WIDE
from bench.weights import Random
from stages import convert, run
from wanpipe.backend import device
from wanpipe.checkpoints.rules import clip as clip_rules
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.rules import umt5 as umt5_rules
from wanpipe.models.clip import CLIP
from wanpipe.models.config import Quantization
from wanpipe.models.dit import DiT
from wanpipe.models.geometry import Triple
from wanpipe.models.umt5 import T5
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import Expert, MemoryPlan
from wanpipe.runtime.report import Report
from wanpipe.runtime.units import format_si

ROOT = Path(__file__).parents[2]
README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"
MAC = ROOT / "docs" / "on-a-mac.md"
LONGEST = (512, 512)  # tokens of prompts
STAGES = ("T5", "image", "transformer", "VAE")


# the transformer of each checkpoint, the latent (F, H, W) of its default size, and its VAE
WAN = {
    "Wan2.1-T2V-1.3B": ("1.3b", WIDE, VAE_21),
    "Wan2.1-T2V-14B": ("14b", HD, VAE_21),
    "Wan2.1-I2V-14B-480P": ("i2v-14b", WIDE, VAE_21),
    "Wan2.1-I2V-14B-720P": ("i2v-14b", HD, VAE_21),
    "Wan2.1-FLF2V-14B-720P": ("flf2v-14b-720p", HD, VAE_21),
    "Wan2.2-T2V-A14B": ("14b", HD, VAE_21),
    "Wan2.2-I2V-A14B": ("i2v-a14b-720p", HD, VAE_21),
    "Wan2.2-TI2V-5B": ("ti2v-5b", TI2V_HD, VAE_22),
    "Wan2.1-VACE-1.3B": ("vace-1.3b", WIDE, VAE_21),
    "Wan2.1-VACE-14B": ("vace-14b-720p", HD, VAE_21),
    "Wan2.2-VACE-Fun-A14B": ("vace-14b-720p", HD, VAE_21),
}


def spec(bits: int | None) -> Quantization | None:
    return Quantization(bits=bits, group_size=convert.GROUP_SIZE) if bits else None


def transformer(name: str, bits: int | None = None) -> Random:
    """The file of a transformer."""
    return Random(DiT(DITS[name][0]), dit_rules.RULES, spec(bits))


def stages_of(
    checkpoint: str, latent: Triple, bits: int | None, cuda: bool
) -> dict[str, list[MemoryPlan]]:
    """The plans of every stage in bfloat16, the fastest first; without an image stage for models
    that need no image, and with a video stage for VACE.
    """
    name, _, vae = WAN[checkpoint]
    config = DITS[name][0]
    t5 = Random(T5(T5_XXL), umt5_rules.RULES).parameters - T5_XXL.vocab * T5_XXL.dim
    expert = Expert(
        config=config,
        bytes=transformer(name, bits).bytes,
        stored=2,
        computed=2,
        texts=LONGEST,
        latent=latent,
    )
    plans: dict[str, list[MemoryPlan]] = {"T5": [budget.text_plan(T5_XXL, 2 * t5, LONGEST)]}
    if "I2V" in checkpoint or "FLF2V" in checkpoint:
        clip = Random(CLIP(CLIP_H), clip_rules.rules(CLIP_H.layers)).bytes if config.clip_dim else 0
        images = 2 if "FLF2V" in checkpoint else 1
        frames = 1 if vae is VAE_22 else latent[0]
        plans["image"] = [budget.image_plan(vae, (frames, *latent[1:]), 2, cuda, clip, images)]
    if "VACE" in checkpoint:
        seen = {"clip": 0, "pixels": 0, "times": 2}
        plans["video"] = [budget.encode_plan(vae, latent, 2, cuda, **seen)]
    plans["transformer"] = [*expert.plans()]
    plans["VAE"] = [*budget.decode_plans(vae, latent, 2, cuda)]
    return plans


def rows(page: Path, columns: int) -> list[list[str]]:
    """The cells of all table rows with so many columns."""
    lines = page.read_text("utf-8").splitlines()
    cells = [re.split(r" \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    return [row for row in cells if len(row) == columns]


def test_performance_has_the_sizes_of_files() -> None:
    def row(*files: Random) -> str:
        return " | ".join(f"{file.bytes / 1e9:.2f} GB" for file in files)

    page, each = PERFORMANCE.read_text("utf-8"), (None, 8, 4)
    for name in ("1.3b", "14b", "i2v-14b", "ti2v-5b"):
        assert f"| {row(*(transformer(name, bits) for bits in each))} |" in page
    texts = [Random(T5(T5_XXL), umt5_rules.RULES, spec(bits)) for bits in each]
    assert f"| {row(*texts)} |" in page


def test_the_readme_has_the_memory_of_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_unified", lambda: False)
    found = {row[0]: row[-1] for row in rows(README, 5) if row[0] in WAN}
    for checkpoint, (_, latent, _) in WAN.items():
        plans = stages_of(checkpoint, latent, None, cuda=True).values()
        fastest = max(ways[0].peak for ways in plans)
        least = max(min(way.peak for way in ways) for ways in plans)
        assert found.pop(checkpoint) == f"{format_si(fastest, 'B')}, {format_si(least, 'B')}"
    assert found == {}


def options(command: click.Command, cell: str) -> dict[str, Any]:
    """What a command reads of the options in a cell of a table."""
    words = shlex.split(cell.strip("`"))
    return command.make_context(command.name, words).params


def test_on_a_mac_has_the_planned_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_unified", lambda: True)
    table = [row for row in rows(MAC, 7) if row[0][0].isdigit()]
    assert [row[0] for row in table] == [f"{n} GB" for n in (8, 16, 24, 32, 48, 64, 96, 128)]
    for memory, converted, ran, *peaks in table:
        asked, limits = options(convert.command, converted), options(run.command, ran)
        assert 0.6 < limits["memory"] / 1e9 / int(memory.split()[0]) < 0.7
        checkpoint = asked["checkpoint_dir"].name
        _, latent, vae = WAN[checkpoint]
        if limits["width"]:
            latent = (
                latent[0],
                limits["height"] // vae.stride[1],
                limits["width"] // vae.stride[2],
            )
        bits = (asked["bits"] or convert.BITS) if asked["quantize"] else None
        plans = stages_of(checkpoint, latent, bits, cuda=False)
        chosen = {
            stage: budget.choose_plan(stage, ways, limits["memory"], Report())
            for stage, ways in plans.items()
        }
        assert not chosen["transformer"].streamed
        words = [format_si(chosen[s].peak, "B") if s in chosen else "–" for s in STAGES]
        assert words == peaks
