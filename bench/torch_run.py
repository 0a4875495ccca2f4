"""A whole text-to-video script of diffusers, for bench/whole_peer.py: from weights to PNG frames.

    python -m bench.torch_run TASK [--cpu]       TASK is JSON

Loads the folder that bench/theirs.py wrote, in bfloat16, and does what WanPipeline does with
`prompt_embeds`; that class itself needs transformers, even where the text is given. Prints events
like `wanpipe run --events json`. Does not load MLX. Needs torch, diffusers and accelerate.
"""

import json
import sys
from pathlib import Path
from typing import Any

from wanpipe.media.frames import save_frames


def report(event: str, **fields: Any) -> None:
    """Print an event."""
    print(json.dumps({"event": event, **fields}), file=sys.stderr, flush=True)


def load(folder: Path, device: str, names: dict[str, str]) -> dict[str, Any]:
    """Load the networks: our names of the components by their folders."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    found: dict[str, Any] = {}
    for part, name in names.items():
        kind = AutoencoderKLWan if part == "vae" else WanTransformer3DModel
        found[part], info = kind.from_pretrained(
            folder / part, torch_dtype=torch.bfloat16, device_map=device, output_loading_info=True
        )
        assert not any(info.values()), info
        wait(device)
        report("loaded", component=name)
    return found


def wait(device: str) -> None:
    """Wait for the GPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def denoise(
    task: dict[str, Any], networks: dict[str, Any], text: dict[str, Any], device: str
) -> Any:
    """Return the last latent. The passes of a step follow each other, as in WanPipeline."""
    import torch
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=task["shift"]
    )
    scheduler.set_timesteps(task["steps"], device=device)
    scheduler.set_begin_index(0)
    generator = torch.Generator(device).manual_seed(task["seed"])
    latent = torch.randn(task["latent"], generator=generator, device=device)
    for index, when in enumerate(scheduler.timesteps):
        high = task["boundary"] is None or when >= 1000 * task["boundary"]
        part, scale = "transformer" if high else "transformer_2", task["guide_scale"]
        passes = [
            networks[part](
                hidden_states=latent.to(torch.bfloat16),
                timestep=when.expand(1),
                encoder_hidden_states=text[name],
                return_dict=False,
            )[0]
            for name in (("prompt", "negative") if scale > 1 else ("prompt",))
        ]
        velocity = passes[0]
        if scale > 1:
            velocity = passes[1] + scale * (passes[0] - passes[1])
        latent = scheduler.step(velocity, when, latent, return_dict=False)[0]
        wait(device)
        fields = {"component": task["components"][part], "done": index + 1, "total": task["steps"]}
        report("progress", stage="denoise", **fields)
    return latent


def decode(vae: Any, latent: Any) -> Any:
    """Return the frames of a latent (T, Y, X, 3) in uint8."""
    import torch
    from diffusers.video_processor import VideoProcessor

    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latent.device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    scaled = latent.to(vae.dtype) / (1.0 / deviation) + mean  # rounded as in WanPipeline
    video = vae.decode(scaled, return_dict=False)[0]
    frames = VideoProcessor().postprocess_video(video, output_type="pt")[0]  # (T, 3, Y, X)
    frames = (frames.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8).cpu().numpy()
    report("progress", stage="decode", done=1, total=1)
    return frames


def run(task: dict[str, Any], device: str) -> None:
    """Make one video."""
    import torch
    from safetensors.torch import load_file

    report("progress", stage="import")
    folder = Path(task["folder"])
    text = load_file(folder / "text.safetensors", device=device)
    report("computed", stage="encode-text")
    networks = load(folder, device, task["components"])
    with torch.no_grad():
        frames = decode(networks["vae"], denoise(task, networks, text, device))
    save_frames(Path(task["output"]), [frames], {})
    report("written", path=task["output"])


def main() -> None:
    """Run a task. Exits with one line if a requirement is missing."""
    _, given, *rest = sys.argv
    try:
        import accelerate  # noqa: F401
        import diffusers  # noqa: F401
        import torch
    except ImportError as error:
        sys.exit(f"{error.name} is not installed")
    if "--cpu" not in rest and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    run(json.loads(given), "cpu" if "--cpu" in rest else "cuda")


if __name__ == "__main__":
    main()
