"""Names that diffusers gives the tensors of Wan (transformer_wan.py, transformer_wan_vace.py,
autoencoder_kl_wan.py), and the official ones: data, no code but the expansion of blocks.
"""

from wanpipe.checkpoints.rename import RenameRule
from wanpipe.checkpoints.rules import lora

DIT: tuple[RenameRule, ...] = (
    RenameRule("patch_embedding.{leaf}", "patch_embedding.{leaf}"),
    RenameRule("scale_shift_table", "head.modulation"),
    RenameRule("blocks.{i}.scale_shift_table", "blocks.{i}.modulation"),
    RenameRule("vace_blocks.{i}.scale_shift_table", "vace_blocks.{i}.modulation"),
    RenameRule("vace_patch_embedding.{leaf}", "vace_patch_embedding.{leaf}"),
    RenameRule("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    *(
        RenameRule(f"{rule.pattern}.{{leaf}}", f"{rule.target}.{{leaf}}")
        for rule in lora.DIFFUSERS_RULES
    ),
)

# theirs and the official name, inside a residual block
RESIDUAL = (
    ("norm1.gamma", "residual.0.gamma"),
    ("conv1.{leaf}", "residual.2.{leaf}"),
    ("norm2.gamma", "residual.3.gamma"),
    ("conv2.{leaf}", "residual.6.{leaf}"),
    ("conv_shortcut.{leaf}", "shortcut.{leaf}"),
)
RESAMPLE = (
    ("resample.1.{leaf}", "resample.1.{leaf}"),
    ("time_conv.{leaf}", "time_conv.{leaf}"),
)
ENDS = (
    ("conv_in.{leaf}", "conv1.{leaf}"),
    ("mid_block.attentions.0.norm.gamma", "middle.1.norm.gamma"),
    ("mid_block.attentions.0.to_qkv.{leaf}", "middle.1.to_qkv.{leaf}"),
    ("mid_block.attentions.0.proj.{leaf}", "middle.1.proj.{leaf}"),
    ("norm_out.gamma", "head.0.gamma"),
    ("conv_out.{leaf}", "head.2.{leaf}"),
)


def _rules(
    theirs: str, official: str, names: tuple[tuple[str, str], ...]
) -> tuple[RenameRule, ...]:
    return tuple(RenameRule(f"{theirs}.{name}", f"{official}.{ours}") for name, ours in names)


_COMMON = (
    RenameRule("quant_conv.{leaf}", "conv1.{leaf}"),
    RenameRule("post_quant_conv.{leaf}", "conv2.{leaf}"),
    *_rules("encoder", "encoder", ENDS),
    *_rules("encoder.mid_block.resnets.0", "encoder.middle.0", RESIDUAL),
    *_rules("encoder.mid_block.resnets.1", "encoder.middle.2", RESIDUAL),
    *_rules("decoder", "decoder", ENDS),
    *_rules("decoder.mid_block.resnets.0", "decoder.middle.0", RESIDUAL),
    *_rules("decoder.mid_block.resnets.1", "decoder.middle.2", RESIDUAL),
)
_STAGES = range(4)  # of each half: dim_mult 1, 2, 4, 4

# Wan2.1: the encoder's blocks are one list, the decoder's three and a resampling per stage
VAE_21: tuple[RenameRule, ...] = (
    *_COMMON,
    *_rules("encoder.down_blocks.{i}", "encoder.downsamples.{i}", RESIDUAL + RESAMPLE),
    *(
        rule
        for stage in _STAGES
        for block in range(3)
        for rule in _rules(
            f"decoder.up_blocks.{stage}.resnets.{block}",
            f"decoder.upsamples.{4 * stage + block}",
            RESIDUAL,
        )
    ),
    *(
        rule
        for stage in _STAGES
        for rule in _rules(
            f"decoder.up_blocks.{stage}.upsamplers.0",
            f"decoder.upsamples.{4 * stage + 3}",
            RESAMPLE,
        )
    ),
)

# Wan2.2: both nest; two residual blocks before a resampling in the encoder, three in the decoder
VAE_22: tuple[RenameRule, ...] = (
    *_COMMON,
    *_rules(
        "encoder.down_blocks.{i}.resnets.{j}", "encoder.downsamples.{i}.downsamples.{j}", RESIDUAL
    ),
    *_rules(
        "encoder.down_blocks.{i}.downsampler", "encoder.downsamples.{i}.downsamples.2", RESAMPLE
    ),
    *_rules("decoder.up_blocks.{i}.resnets.{j}", "decoder.upsamples.{i}.upsamples.{j}", RESIDUAL),
    *_rules("decoder.up_blocks.{i}.upsampler", "decoder.upsamples.{i}.upsamples.3", RESAMPLE),
)

# keys of transformer/config.json and the official ones; without one, the shapes tell
CONFIG: dict[str, str | None] = {
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "patch_size": "patch_size",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "vace_layers": "vace_layers",
    "vace_in_channels": "vace_in_dim",
    "wanpipe": "wanpipe",
    "_class_name": None,
    "_diffusers_version": None,
    "_name_or_path": None,
    "attention_head_dim": None,
    "qk_norm": None,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": None,
    "pos_embed_seq_len": None,
}
# the values that the official code has
FIXED = {
    "_class_name": ("WanTransformer3DModel", "WanVACETransformer3DModel"),
    "qk_norm": ("rms_norm_across_heads",),
}
