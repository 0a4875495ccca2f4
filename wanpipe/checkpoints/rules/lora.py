"""How the tools of the field name the tensors of a LoRA: data, no code but the repetition of a
block's rules for VACE.

A key is prefix, module, part. Modules have the official names of wan/modules/model.py, those of
diffusers, or either with underscores for dots.
"""

from wanpipe.checkpoints.rename import RenameRule

# taken off the front of a key; the first kind one after another, as long as one fits
DOTTED_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "pipe.dit.",
    "dit.",
    "unet.",
)
# kohya: with dots as underscores
UNDERSCORED_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_", "lora_transformer_")
# of the second transformer of Wan2.2, which has the low noise: diffusers, ComfyUI, DiffSynth;
# OneTrainer has underscores
SECOND_PREFIXES = (
    "transformer_2.",
    "diffusion_model_2.",
    "model.diffusion_model_2.",
    "pipe.dit2.",
    "dit2.",
)
SECOND_UNDERSCORED_PREFIXES = ("lora_transformer_2_",)

# end of a key, as a regular expression, and what the tensor is; the first that fits counts
KEY_ENDINGS = (
    (r"\.lora_(A|down)(\.\w+)?(\.weight)?", "down"),
    (r"\.lora_(B|up)(\.\w+)?(\.weight)?", "up"),
    (r"[._]lora(_linear_layer)?\.down(\.weight)?", "down"),
    (r"[._]lora(_linear_layer)?\.up(\.weight)?", "up"),
    (r"\.(lora_)?alpha", "alpha"),
    (r"\.diff", "weight"),
    (r"\.diff_b", "bias"),
    (r"\.diff_m", "modulation"),
)

# adapters that change weights in another way: applying the rest without them would be wrong
OTHER_ADAPTERS = (
    (r"\.(dora_scale|lora_magnitude_vector(\.\w+)*)", "DoRA"),
    (r"\.lora_mid\.weight", "Tucker LoCon"),
    (r"\.lora_B(\.\w+)?\.bias", "LoRA with biases"),
    (r"\.hada_\w+", "LoHa"),
    (r"\.lokr_\w+", "LoKr"),
    (r"\.oft_\w+", "OFT"),
)

_ATTENTION = ("q", "k", "v", "o", "norm_q", "norm_k")
_IMAGE = ("k_img", "v_img", "norm_k_img")


def _with_vace(rules: tuple[RenameRule, ...]) -> tuple[RenameRule, ...]:
    """Repeat the rules of blocks for VACE's, which have the same names inside."""
    return rules + tuple(
        RenameRule(f"vace_{rule.pattern}", f"vace_{rule.target}")
        for rule in rules
        if rule.pattern.startswith("blocks.")
    )


# modules by the names of the official code
OFFICIAL_RULES: tuple[RenameRule, ...] = _with_vace(
    tuple(
        RenameRule(name, name)
        for name in (
            "patch_embedding",
            "text_embedding.0",
            "text_embedding.2",
            "time_embedding.0",
            "time_embedding.2",
            "time_projection.1",
            "blocks.{i}",
            *(f"blocks.{{i}}.self_attn.{part}" for part in _ATTENTION),
            *(f"blocks.{{i}}.cross_attn.{part}" for part in (*_ATTENTION, *_IMAGE)),
            "blocks.{i}.norm3",
            "blocks.{i}.ffn.0",
            "blocks.{i}.ffn.2",
            "img_emb.proj.{j}",
            "head",
            "head.head",
            "vace_patch_embedding",
            "vace_blocks.{i}.before_proj",
            "vace_blocks.{i}.after_proj",
        )
    )
)
# modules by the names of diffusers (transformer_wan.py), where they differ
DIFFUSERS_RULES: tuple[RenameRule, ...] = _with_vace(
    (
        *(
            RenameRule(f"blocks.{{i}}.{theirs}.{name}", f"blocks.{{i}}.{ours}.{part}")
            for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
            for name, part in (
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "o"),
                ("norm_q", "norm_q"),
                ("norm_k", "norm_k"),
                ("add_k_proj", "k_img"),
                ("add_v_proj", "v_img"),
                ("norm_added_k", "norm_k_img"),
            )
        ),
        RenameRule("blocks.{i}.norm2", "blocks.{i}.norm3"),
        RenameRule("blocks.{i}.ffn.net.0.proj", "blocks.{i}.ffn.0"),
        RenameRule("blocks.{i}.ffn.net.2", "blocks.{i}.ffn.2"),
        RenameRule("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        RenameRule("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        RenameRule("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        RenameRule("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        RenameRule("condition_embedder.time_proj", "time_projection.1"),
        RenameRule("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        RenameRule("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        RenameRule("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        RenameRule("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        RenameRule("proj_out", "head.head"),
        RenameRule("vace_blocks.{i}.proj_in", "vace_blocks.{i}.before_proj"),
        RenameRule("vace_blocks.{i}.proj_out", "vace_blocks.{i}.after_proj"),
    )
)
# modules that only the image branch of Wan2.1 I2V has
IMAGE_BRANCH = r"img_emb\..*|blocks\.\d+\.cross_attn\.(k_img|v_img|norm_k_img)"
# modules that only VACE has
VACE = r"vace_.*"

# keys that belong to another network
OTHER_NETWORKS = (
    (r"(lora_te\d?_|text_encoder\.|lora_text_encoder).*", "for a text encoder"),
    (r"(lora_vae_|vae\.|first_stage_model\.).*", "for a VAE"),
)

# width of the transformers of the family, and who has it
MODELS_BY_DIM = {
    1536: "Wan2.1 1.3B",
    3072: "Wan2.2 TI2V-5B",
    5120: "Wan2.1 14B or Wan2.2 A14B",
}
