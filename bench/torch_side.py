"""The PyTorch side of bench/dit.py, bench/vae.py and bench/parity.py: diffusers' Wan networks.

    python -m bench.torch_side step TASK         time a step with random weights; TASK is JSON
    python -m bench.torch_side coder TASK        time a VAE encoder or decoder; TASK is JSON
    python -m bench.torch_side compare FOLDER    run the weights and inputs in FOLDER

Does not load MLX. Needs torch and diffusers, and CUDA unless --cpu is given. The last line of
`step` and `coder` is JSON. `compare` writes its results to FOLDER.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RENAMES = (
    (r"text_embedding\.fc([12])", r"condition_embedder.text_embedder.linear_\1"),
    (r"time_embedding\.fc([12])", r"condition_embedder.time_embedder.linear_\1"),
    (r"time_projection", "condition_embedder.time_proj"),
    (r"self_attn\.o\b", "attn1.to_out.0"),
    (r"cross_attn\.o\b", "attn2.to_out.0"),
    (r"self_attn\.(q|k|v)\b", r"attn1.to_\1"),
    (r"cross_attn\.(q|k|v)\b", r"attn2.to_\1"),
    (r"self_attn\.", "attn1."),
    (r"cross_attn\.", "attn2."),
    (r"norm3", "norm2"),  # diffusers counts the norm before cross attention as the second
    (r"ffn\.fc1", "ffn.net.0.proj"),
    (r"ffn\.fc2", "ffn.net.2"),
    (r"head\.linear|after_proj", "proj_out"),
    (r"before_proj", "proj_in"),
    (r"(head\.)?modulation", "scale_shift_table"),
)


def network(config: dict[str, Any]) -> Any:
    """Make diffusers' transformer of these sizes, with random weights."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    kind, more = WanTransformer3DModel, {}
    if "vace_layers" in config:
        kind = WanVACETransformer3DModel
        more = {"vace_layers": config["vace_layers"], "vace_in_channels": config["vace_in_dim"]}
    return kind(
        num_attention_heads=config["heads"],
        attention_head_dim=config["dim"] // config["heads"],
        in_channels=config["in_dim"],
        out_channels=config["out_dim"],
        text_dim=config["text_dim"],
        freq_dim=256,
        ffn_dim=config["ffn_dim"],
        num_layers=config["layers"],
        **more,
    ).eval()


def control(config: dict[str, Any], context: Any) -> dict[str, Any]:
    """Return the arguments of a forward that only VACE has."""
    return {"control_hidden_states": context} if "vace_layers" in config else {}


def renamed(name: str) -> str:
    """Return diffusers' name of one of our parameters."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def state(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a converted file as float32 tensors under diffusers' names."""
    from safetensors.torch import load_file

    weights = {renamed(name): value.float() for name, value in load_file(path).items()}
    for name, value in weights.items():
        if name.endswith("scale_shift_table"):
            weights[name] = value[None]
    for name in ("patch_embedding.weight", "vace_patch_embedding.weight"):
        if name in weights:
            patch = weights[name].reshape(config["dim"], 1, 2, 2, -1)
            weights[name] = patch.permute(0, 4, 1, 2, 3).contiguous()
    return weights


def step(task: dict[str, Any], device: str) -> None:
    """Time a step with guidance as a batch of two, in bfloat16."""
    import torch

    config, dtype = task["config"], torch.bfloat16
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model: Any = network(config)
    torch.set_default_dtype(torch.float32)
    kind = {"device": device, "dtype": dtype}
    latent = torch.randn(2, config["in_dim"], *task["latent"], **kind)
    text = torch.randn(2, config["text_len"], config["text_dim"], **kind)
    context = torch.randn(2, config.get("vace_in_dim", 1), *task["latent"], **kind)
    more = {**control(config, context), "return_dict": False}
    when = torch.tensor([500, 500], device=device)
    if task["compiled"]:
        model = torch.compile(model)

    def run() -> None:
        model(hidden_states=latent, timestep=when, encoder_hidden_states=text, **more)

    print_timing(run, task["repeats"], device)


def coder(task: dict[str, Any], device: str) -> None:
    """Time a VAE encoder or decoder on one video, in bfloat16."""
    import torch
    from diffusers import AutoencoderKLWan

    residual = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    zeros, kind = [0.0] * task["z_dim"], {"device": device, "dtype": torch.bfloat16}
    model: Any = AutoencoderKLWan(
        base_dim=task["encoder_dim"],
        decoder_base_dim=task["decoder_dim"],
        z_dim=task["z_dim"],
        latents_mean=zeros,  # not used by the network
        latents_std=zeros,
        **(residual if task["version"] == "2.2" else {}),
    ).eval()
    model = model.to(**kind)
    given = torch.randn(1, *task["shape"], **kind)
    work = model.decode if task["half"] == "decode" else model.encode
    print_timing(lambda: work(given, return_dict=False), task["repeats"], device)


def print_timing(run: Callable[[], object], repeats: int, device: str) -> None:
    """Print the median time and the peak memory of several runs, after two untimed ones."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    with torch.no_grad():
        for index in range(2 + repeats):
            wait()
            if index == 2 and device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run()
            wait()
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    median = statistics.median(seconds[2:])
    made = {"torch": torch.__version__, "seconds": median, "peak_gb": peak / 1e9}
    print(json.dumps(made), flush=True)


def compare(folder: Path, device: str) -> None:
    """Run the model of a folder in float32 and bfloat16; write `torch-DTYPE-WHAT.npy`."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # on by default; affects the patch embedding
    config = json.loads((folder / "config.json").read_text())
    inputs = {name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in config["inputs"]}
    with torch.device(device):  # drawing weights on a CPU is slow, and they are replaced anyway
        model = network(config)
    model.load_state_dict(state(folder / "model.safetensors", config))
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16:
            narrow(model)
        name = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            for what, result in results(model, inputs, dtype, device).items():
                np.save(folder / f"torch-{name}-{what}.npy", result.float().cpu().numpy())


def narrow(model: Any) -> None:
    """Cast parameters to bfloat16, except those that diffusers keeps in float32."""
    import torch

    full = set(model._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if full.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)


def results(model: Any, inputs: dict[str, Any], dtype: Any, device: str) -> dict[str, Any]:
    """Return the stream after the first block (L, D), and the model's velocity (C, F, H, W)."""
    import torch

    latent, text, stream, time, words = (
        inputs[name].to(device) for name in ("latent", "text", "stream", "time", "words")
    )
    context = inputs["context"].to(device, dtype)[None] if "context" in inputs else None
    rotary = model.rope(latent[None])
    block = model.blocks[0](stream.to(dtype), words.to(dtype), time, rotary)
    velocity = model(
        hidden_states=latent[None].to(dtype),
        timestep=torch.tensor([500], device=device),
        encoder_hidden_states=text[None].to(dtype),
        return_dict=False,
        **control(model.config, context),
    )[0]
    return {"block": block[0], "model": velocity[0]}


def main() -> None:
    """Run a command. Exits with one line if a requirement is missing."""
    what, given, *rest = sys.argv[1:]
    device = "cpu" if "--cpu" in rest else "cuda"
    try:
        import diffusers  # noqa: F401
        import torch
    except ImportError as error:
        sys.exit(f"{error.name} is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    if what in ("step", "coder"):
        {"step": step, "coder": coder}[what](json.loads(given), device)
    else:
        compare(Path(given), device)


if __name__ == "__main__":
    main()
