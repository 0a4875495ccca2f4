"""Names that mlx-video gives the tensors of Wan (models/wan_2/convert.py, vae22.py), and the
official ones: data, no code but the expansion of the VAE's rules.

Tensors that have no rule have their official names. Convolutions have their channels last.
"""

from wanpipe.checkpoints.rename import RenameRule
from wanpipe.checkpoints.rules import vae

DIT: tuple[RenameRule, ...] = (
    RenameRule("patch_embedding_proj.weight", "patch_embedding.weight", "unpatch"),
    RenameRule("patch_embedding_proj.bias", "patch_embedding.bias"),
    RenameRule("text_embedding_0.{leaf}", "text_embedding.0.{leaf}"),
    RenameRule("text_embedding_1.{leaf}", "text_embedding.2.{leaf}"),
    RenameRule("time_embedding_0.{leaf}", "time_embedding.0.{leaf}"),
    RenameRule("time_embedding_1.{leaf}", "time_embedding.2.{leaf}"),
    RenameRule("time_projection.{leaf}", "time_projection.1.{leaf}"),
    RenameRule("blocks.{i}.ffn.fc1.{leaf}", "blocks.{i}.ffn.0.{leaf}"),
    RenameRule("blocks.{i}.ffn.fc2.{leaf}", "blocks.{i}.ffn.2.{leaf}"),
    RenameRule("freqs", None),  # computed
)
UMT5: tuple[RenameRule, ...] = (
    RenameRule("blocks.{i}.ffn.gate_proj.weight", "blocks.{i}.ffn.gate.0.weight"),
)
# what the VAE of Wan2.2 calls differently: official words, and theirs
VAE_22_WORDS = (
    (".residual.", ".residual.layer_"),
    (".head.", ".head.layer_"),
    (".resample.1.", ".resample_"),
    (".to_qkv.", ".to_qkv_"),
    (".proj.", ".proj_"),
)


def _renamed(name: str) -> str:
    for official, theirs in VAE_22_WORDS:
        name = name.replace(official, theirs)
    return name


VAE_21: tuple[RenameRule, ...] = tuple(
    RenameRule(rule.pattern, rule.pattern, "channels_first") for rule in vae.RULES_21_DECODER
)
VAE_22: tuple[RenameRule, ...] = tuple(
    RenameRule(_renamed(rule.pattern), rule.pattern, "channels_first")
    for rule in vae.RULES_22_DECODER
)

# keys of config.json and the official ones; its defaults are those of the official configs
CONFIG: dict[str, str | None] = {
    "model_type": "model_type",
    "patch_size": "patch_size",
    "text_len": "text_len",
    "in_dim": "in_dim",
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "out_dim": "out_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "window_size": "window_size",
    "qk_norm": "qk_norm",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "wanpipe": "wanpipe",
    "model_version": None,
    "dual_model": None,
    "vae_stride": None,
    "vae_z_dim": None,
    "boundary": None,
    "sample_shift": None,
    "sample_steps": None,
    "sample_guide_scale": None,
    "sample_fps": None,
    "sample_neg_prompt": None,
    "num_train_timesteps": None,
    "frame_num": None,
    "max_area": None,
    "t5_vocab_size": None,
    "t5_dim": None,
    "t5_dim_attn": None,
    "t5_dim_ffn": None,
    "t5_num_heads": None,
    "t5_num_layers": None,
    "t5_num_buckets": None,
    "quantization": None,  # of weights that are refused
}
