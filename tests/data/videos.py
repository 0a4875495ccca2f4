"""Records what diffusers makes of a video: changed, changed under a mask, and continued.

    python tests/data/videos.py FIXTURES CHECKPOINTS

Needs torch 2.13, diffusers 0.42.1 and transformers 5.24. FIXTURES is the folder that pack.py takes.
CHECKPOINTS is a folder with the families below in the layout of diffusers, each as
tests.checkpoints.foreign.write_diffusers writes it. drawings.py draws the videos. Each run is
written beside the other runs of its family, in their form.

Networks, VAE, solver and loops are those of diffusers. Given are:
- the noise levels: those of the official UniPC, because diffusers has others;
- the noise;
- the CLIP tokens of Wan2.1, because diffusers resizes the image in another way than the official
  code;
- several known frames, where diffusers takes one image (`Continued`);
- the mask, which diffusers does not have here (`Levels.step`);
- the start of video-to-video with two experts, which WanVideoToVideoPipeline does not take.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from drawings import FRAMES, HEIGHT, WIDTHS, draw_mask, draw_video, latent_mask
from last_frame import load, padded, transformer
from pack import HERE, write
from PIL import Image
from safetensors.numpy import load_file, save
from transformers import CLIPVisionConfig, CLIPVisionModel

NEWEST = 0.9990000128746033  # highest level of the official UniPC before the shift
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is recorded. `guide` is guidance at low and at high noise; `extend` the known frames."""

    family: str
    topic: str
    steps: int
    shift: float
    guide: tuple[float, float]
    seed: int
    texts: str = "e2e"  # the run of the official code that has the prompts
    video: str = "clip"
    strength: float | None = None
    masked: bool = False
    extend: int | None = None
    boundary: float | None = None

    @property
    def begin(self) -> int:
        """The first step that is run, as WanVideoToVideoPipeline counts."""
        if self.strength is None:
            return 0
        return max(self.steps - min(int(self.steps * self.strength), self.steps), 0)


T2V, T2V_A14B = "wan21-t2v", "wan22-t2v-a14b"
I2V, I2V_A14B, TI2V = "wan21-i2v", "wan22-i2v-a14b", "wan22-ti2v-5b"
EVEN = (5.0, 5.0)
# what the config of Wan2.1 I2V leaves out: the widths of CLIP and of the transformer
IMAGE_WIDTHS = {"image_dim": 32, "added_kv_proj_dim": 64}


def runs() -> Iterator[Run]:
    """Give every run, with another noise each."""
    change = partial(Run, family=T2V, shift=5.0, guide=EVEN)
    yield change(topic="e2e_video", steps=10, strength=0.7, seed=1)
    yield change(topic="e2e_video_whole", steps=4, strength=1.0, seed=2)
    yield change(topic="e2e_video_mask", steps=6, strength=0.75, masked=True, seed=3)
    both = partial(Run, family=T2V_A14B, shift=12.0, guide=(3.0, 4.0), boundary=0.875)
    yield both(topic="e2e_video", steps=6, strength=0.9, seed=4)
    extend = partial(Run, topic="e2e_extend", steps=4, extend=5)
    yield extend(family=I2V_A14B, shift=5.0, guide=(3.5, 4.5), boundary=0.9, seed=5)
    yield extend(family=I2V, shift=3.0, guide=EVEN, seed=6)
    yield extend(family=TI2V, shift=5.0, guide=EVEN, seed=7, texts="e2e_i2v", video="wide")


class Levels(UniPCMultistepScheduler):
    """UniPC on the official noise levels, from the first step of a run on.

    Remembers the latent `z` that noise is added to. Where `made` is 0, the velocity leads to it.
    """

    run: Run
    made: torch.Tensor | None = None  # (1, F, H, W): 1 where the video is made anew
    z: torch.Tensor

    @classmethod
    def of(cls, run: Run) -> "Levels":
        scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True)
        scheduler.run, scheduler.x0 = run, []
        scheduler.set_timesteps(run.steps)
        return scheduler

    def set_timesteps(self, steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(steps, device)
        even = np.linspace(NEWEST, 0.0, self.run.steps + 1)[:-1]
        levels = self.run.shift * even / (1.0 + (self.run.shift - 1.0) * even)
        self.sigmas = torch.from_numpy(np.append(levels, 0.0).astype(np.float32))
        self.timesteps = torch.from_numpy((1000 * levels).astype(np.int64))

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> torch.Tensor:
        self.z = original_samples
        return super().add_noise(original_samples, noise, timesteps)

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        sigma = self.sigmas[self.timesteps.tolist().index(int(timestep))]
        if self.made is not None:
            model_output = torch.where(self.made > 0, model_output, (sample - self.z) / sigma)
        self.x0.append((sample - sigma * model_output)[0].numpy().copy())
        return super().step(model_output, timestep, sample, **options)


class Late(Levels):
    """The same for a pipeline that does not know where to begin: the earlier steps are cut off."""

    def set_timesteps(self, steps: int, device: Any = None, **_: Any) -> None:
        super().set_timesteps(steps, device)
        self.sigmas, self.timesteps = (
            array[self.run.begin :] for array in (self.sigmas, self.timesteps)
        )


class Continued(WanImageToVideoPipeline):
    """Takes the first frames of the video as known, not one image."""

    known: torch.Tensor  # (1, 3, K, Y, X) in [-1, 1]
    condition: torch.Tensor
    first_mask: torch.Tensor | None = None

    def prepare_latents(self, *arguments: Any, **options: Any) -> Any:
        latents, condition, *mask = super().prepare_latents(*arguments, **options)
        count = 1 + (self.known.shape[2] - 1) // 4  # of latent frames that are known
        if mask:
            encoded = encode(self.vae, self.known)
            self.condition = torch.zeros_like(latents)
            self.condition[:, :, :count] = encoded
            self.first_mask = mask[0]
            self.first_mask[:, :, :count] = 0
            return latents, self.condition, self.first_mask
        gray = torch.zeros(1, 3, FRAMES - self.known.shape[2], *self.known.shape[3:])
        condition[:, :4] = 0
        condition[:, :4, :count] = 1
        condition[:, 4:] = encode(self.vae, torch.cat([self.known, gray], 2))
        self.condition = condition
        return latents, condition

    def encode_image(self, image: Image.Image, device: Any = None) -> torch.Tensor:
        """Give the tokens of the official code (1, 257, D), without the last block."""
        pixels = signed([image])[:, :, 0]
        size = (self.image_encoder.config.image_size,) * 2
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", align_corners=False)
        mean, deviation = (torch.tensor(one)[:, None, None] for one in (CLIP_MEAN, CLIP_DEVIATION))
        output = self.image_encoder(
            (pixels / 2 + 0.5 - mean) / deviation, output_hidden_states=True
        )
        self.tokens = output.hidden_states[-2]
        return self.tokens


def signed(frames: list[Image.Image]) -> torch.Tensor:
    """Convert frames to (1, 3, T, Y, X) in [-1, 1]."""
    pixels = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames])
    return torch.from_numpy(pixels.transpose(3, 0, 1, 2)[None] / 127.5 - 1)


def encode(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pixels (1, 3, T, Y, X) in [-1, 1] to a normalized latent."""
    mean, deviation = (
        torch.tensor(one).view(1, -1, 1, 1, 1)
        for one in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (vae.encode(pixels).latent_dist.mode() - mean) / deviation


def vae_of(folder: Path, family: str) -> torch.nn.Module:
    if family != TI2V:
        return load(folder / "vae", AutoencoderKLWan(base_dim=4, z_dim=16))
    numbers = json.loads((HERE / "expected" / family / "vae.json").read_text(encoding="utf-8"))
    network = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=3,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=numbers["mean"],
        latents_std=numbers["std"],
    )
    return load(folder / "vae", network)


def clip_of(folder: Path) -> torch.nn.Module:
    """Build the tiny CLIP: width 32, 2 heads, 3 blocks."""
    config = CLIPVisionConfig(
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=3,
        patch_size=14,
        image_size=224,
        intermediate_size=128,
        hidden_act="gelu",
    )
    weights = load_file(folder / "model.safetensors")
    tensors = {
        name.removeprefix("vision_model."): torch.from_numpy(value.copy())
        for name, value in weights.items()
    }
    network = CLIPVisionModel(config)
    network.load_state_dict(tensors, strict=True)
    return network.float().eval()


def change(run: Run, folder: Path, options: dict[str, Any], video: list[Image.Image]) -> Any:
    """Run video-to-video; return the frames, the scheduler and what else is recorded."""
    noise = options.pop("latents")
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae_of(folder, run.family),
        "transformer": transformer(folder / "transformer"),
    }
    if run.boundary is not None:
        return change_with_two(run, folder, parts, options, video, noise)
    scheduler, extra = Levels.of(run), {}
    if run.masked:
        extra["mask"] = latent_mask(draw_mask())
        scheduler.made = torch.from_numpy(extra["mask"])
    pipeline = WanVideoToVideoPipeline(**parts, scheduler=scheduler)
    with patch("diffusers.pipelines.wan.pipeline_wan_video2video.randn_tensor", return_value=noise):
        made = pipeline(video=video, strength=run.strength, **options)
    return made, scheduler, extra | {"z": scheduler.z[0].numpy()}


def change_with_two(
    run: Run,
    folder: Path,
    parts: dict[str, Any],
    options: dict[str, Any],
    video: list[Image.Image],
    noise: torch.Tensor,
) -> Any:
    """The same with two experts, which only the text-to-video pipeline takes: it gets the start."""
    scheduler = Late.of(run)
    z = encode(parts["vae"], signed(video))
    start = scheduler.add_noise(z, noise, scheduler.timesteps[:1])
    pipeline = WanPipeline(
        **parts,
        transformer_2=transformer(folder / "transformer_2"),
        scheduler=scheduler,
        boundary_ratio=run.boundary,
    )
    low = {"guidance_scale_2": run.guide[0], "num_frames": FRAMES}
    made = pipeline(latents=start, **low, **options)
    return made, scheduler, {"z": z[0].numpy()}


def extend(run: Run, folder: Path, options: dict[str, Any], video: list[Image.Image]) -> Any:
    """Continue a video; return the frames, the scheduler and what else is recorded."""
    scheduler, both = Levels.of(run), run.boundary is not None
    clip, more = run.family == I2V, IMAGE_WIDTHS if run.family == I2V else {}
    pipeline = Continued(
        tokenizer=None,
        text_encoder=None,
        vae=vae_of(folder, run.family),
        scheduler=scheduler,
        transformer=transformer(folder / "transformer", **more),
        transformer_2=transformer(folder / "transformer_2") if both else None,
        image_encoder=clip_of(folder / "image_encoder") if clip else None,
        boundary_ratio=run.boundary,
        expand_timesteps=run.family == TI2V,
    )
    known = video[-run.extend :]
    pipeline.known = signed(known)
    if both:
        options["guidance_scale_2"] = run.guide[0]
    record = options["callback_on_step_end"]

    def keep(_: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        if (mask := pipeline.first_mask) is not None:
            state["latents"] = (1 - mask) * pipeline.condition + mask * state["latents"]
        return record(_, step, timestep, state)

    options["callback_on_step_end"] = keep
    made = pipeline(image=known[0], num_frames=FRAMES, **options)
    if pipeline.first_mask is not None:
        count = 1 + (run.extend - 1) // 4
        return made, scheduler, {"image_latent": pipeline.condition[0, :, :count].numpy()}
    extra = {"y": pipeline.condition[0].numpy()}
    if clip:
        extra["clip_fea"] = pipeline.tokens.numpy()
    return made, scheduler, extra


def record(run: Run, folder: Path, texts: dict[str, np.ndarray], video: Any) -> dict[str, Any]:
    """Make one run; return what it was given and what it made at every step."""
    latents = []

    def keep(_: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        latents.append(state["latents"][0].numpy().copy())
        return state

    channels, stride = (48, 16) if run.family == TI2V else (16, 8)
    width = WIDTHS[run.video]
    shape = (channels, 1 + FRAMES // 4, HEIGHT // stride, width // stride)
    generator = np.random.Generator(np.random.Philox(run.seed))
    noise = generator.standard_normal(shape, dtype=np.float32)
    options = {
        "prompt_embeds": padded(texts["context"]),
        "negative_prompt_embeds": padded(texts["context_null"]),
        "height": HEIGHT,
        "width": width,
        "num_inference_steps": run.steps if run.boundary is None else run.steps - run.begin,
        "guidance_scale": run.guide[1],
        "latents": torch.from_numpy(noise)[None],
        "output_type": "np",
        "callback_on_step_end": keep,
    }
    make = change if run.strength is not None else extend
    made, scheduler, extra = make(run, folder, options, video)
    cut = 0 if isinstance(scheduler, Late) else run.begin
    if run.masked:
        extra["x0"] = np.stack(scheduler.x0)
    return extra | {
        "noise": noise,
        "latents": np.stack(latents),
        "timesteps": scheduler.timesteps[cut:].numpy().astype(np.float32),
        "sigmas": scheduler.sigmas[cut:].numpy(),
        "video": np.round(made.frames[0].transpose(3, 0, 1, 2) * 255).astype(np.uint8),
    }


def settings_of(run: Run, told: dict[str, Any]) -> dict[str, Any]:
    low, high = run.guide
    settings: dict[str, Any] = {
        "frame_num": FRAMES,
        "shift": run.shift,
        "sampling_steps": run.steps,
        "guide_scale": high if run.boundary is None else [low, high],
        "solver": "unipc",
        "seed": run.seed,
        "prompt": told["prompt"],
        "n_prompt": told["n_prompt"],
        "size": [WIDTHS[run.video], HEIGHT],
        "src_video": f"../videos/{run.video}",  # relative to the settings
    }
    if run.strength is not None:
        settings |= {"strength": run.strength, "first_step": run.begin}
    if run.masked:
        settings["src_mask"] = "../videos/mask"
    if run.extend is not None:
        settings["extend"] = run.extend
    return settings


def main(fixtures: Path, checkpoints: Path) -> None:
    videos = {name: draw_video(name) for name in WIDTHS}
    for run in runs():
        target, source = (one / "expected" / run.family / run.topic for one in (HERE, fixtures))
        source = source.with_name(run.texts)
        texts = load_file(source.with_suffix(".safetensors"))
        told = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))["settings"]
        arrays = record(run, checkpoints / run.family, texts, videos[run.video])
        packed = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write(packed, target.with_suffix(".safetensors"))
        text = json.dumps(settings_of(run, told), indent=1, ensure_ascii=False)
        target.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
