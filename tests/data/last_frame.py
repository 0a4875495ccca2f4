"""Records what diffusers makes of a first and a last image, and of a last image alone, with Wan2.2
I2V-A14B.

    python tests/data/last_frame.py FIXTURES CHECKPOINT

Needs torch 2.13 and diffusers 0.42.1. FIXTURES is the folder that pack.py takes. CHECKPOINT is its
wan22-i2v-a14b in the layout of diffusers, as tests.checkpoints.foreign.write_diffusers writes it.
Writes tests/data/expected/wan22-i2v-a14b/e2e_last.* and e2e_last_alone.*, in the form of the other
runs.

The pipeline is diffusers' own; only its noise levels are given, because diffusers has others than
the official code. diffusers takes no last image alone: it gets a gray first image, which is how it
fills frames that are not known, and the mask of the first frame is cleared in its condition.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from pack import HERE, write
from PIL import Image
from safetensors.numpy import load_file, save

FAMILY = "wan22-i2v-a14b"
TIMESTEPS = [1000.0, 950.0, 800.0, 500.0]  # two of each expert
SIDE, FRAMES = 32, 9  # images of the video's size, which nothing resizes
LOW, HIGH = 3.5, 4.5  # guidance
IMAGES = ("end_first.png", "end_last.png")


class GivenLevels(FlowMatchEulerDiscreteScheduler):
    """Euler's method with TIMESTEPS and no shift."""

    def set_timesteps(self, steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(sigmas=[one / 1000 for one in TIMESTEPS], device=device)


class Pipeline(WanImageToVideoPipeline):
    """The pipeline, which remembers the condition that it makes of the images."""

    alone: bool  # whether the first image is gray, and not known
    condition: torch.Tensor

    def prepare_latents(self, image: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if self.alone:
            image = torch.zeros_like(image)  # exactly gray: no level of 8 bits is
        latents, condition = super().prepare_latents(image, *arguments, **options)
        if self.alone:
            condition[:, :4, 0] = 0
        self.condition = condition[0]
        return latents, condition


def load(folder: Path, network: torch.nn.Module) -> torch.nn.Module:
    """Fill a network from the weights in a folder; no tensor may be left over or missing."""
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    network.load_state_dict(tensors, strict=True)
    return network.float().eval()


def transformer(folder: Path, **more: Any) -> torch.nn.Module:
    """Load a transformer; `more` is what its config leaves out."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return load(folder, WanTransformer3DModel.from_config(config | more))


def padded(tokens: np.ndarray) -> torch.Tensor:
    """Pad the embeddings of a text (L, D) with zeros to (1, 512, D)."""
    rows = np.pad(tokens, ((0, 512 - len(tokens)), (0, 0)))
    return torch.from_numpy(rows)[None]


def draw_images(target: Path, generator: np.random.Generator) -> list[Image.Image]:
    """Draw and save a first and a last image."""
    images = []
    for name in IMAGES:
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
        images.append(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        images[-1].save(target / name)
    return images


def record(
    checkpoint: Path,
    images: list[Image.Image],
    noise: np.ndarray,
    texts: dict[str, np.ndarray],
    alone: bool,
) -> dict[str, np.ndarray]:
    """Run the pipeline; return what it was given and what it made at every step.

    If `alone`, the first image is not used.
    """
    pipeline = Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=load(checkpoint / "vae", AutoencoderKLWan(base_dim=4, z_dim=16)),
        scheduler=GivenLevels(),
        transformer=transformer(checkpoint / "transformer"),
        transformer_2=transformer(checkpoint / "transformer_2"),
        boundary_ratio=0.9,
    )
    pipeline.alone = alone
    latents = []

    def keep(_: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        latents.append(state["latents"][0].numpy().copy())
        return state

    video = pipeline(
        image=images[0],
        last_image=images[1],
        prompt_embeds=padded(texts["context"]),
        negative_prompt_embeds=padded(texts["context_null"]),
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=len(TIMESTEPS),
        guidance_scale=HIGH,
        guidance_scale_2=LOW,
        latents=torch.from_numpy(noise)[None],
        output_type="np",
        callback_on_step_end=keep,
    ).frames[0]  # (T, Y, X, 3) in [0, 1]
    return {
        "noise": noise,
        "latents": np.stack(latents),
        "timesteps": np.array(TIMESTEPS, dtype=np.float32),
        "y": pipeline.condition.numpy(),
        "video": np.round(video.transpose(3, 0, 1, 2) * 255).astype(np.uint8),
    }


def main(fixtures: Path, checkpoint: Path) -> None:
    target, source = HERE / "expected" / FAMILY, fixtures / "expected" / FAMILY
    texts = load_file(source / "e2e.safetensors")
    told = json.loads((source / "e2e.json").read_text(encoding="utf-8"))["settings"]
    generator = np.random.Generator(np.random.Philox(19))
    images = draw_images(target, generator)
    for alone in (False, True):
        noise = generator.standard_normal((16, 1 + FRAMES // 4, SIDE // 8, SIDE // 8))
        arrays = record(checkpoint, images, noise.astype(np.float32), texts, alone)
        packed = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        name = "e2e_last_alone" if alone else "e2e_last"
        write(packed, target / f"{name}.safetensors")
        settings = {
            "frame_num": FRAMES,
            "shift": 1.0,
            "timesteps": TIMESTEPS,
            "sampling_steps": len(TIMESTEPS),
            "guide_scale": [LOW, HIGH],
            "solver": "euler",
            "prompt": told["prompt"],
            "n_prompt": told["n_prompt"],
            **({} if alone else {"first_frame": IMAGES[0]}),
            "last_frame": IMAGES[1],
        }
        text = json.dumps(settings, indent=1, ensure_ascii=False)
        (target / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
