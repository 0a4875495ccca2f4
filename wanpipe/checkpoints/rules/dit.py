"""Official names of the DiT's tensors (wan/modules/model.py, vace_model.py) and ours: data, no
code but the repetition of a block's rules for VACE.

Biases of layers that multiply in the compute dtype have it too: a float32 bias would make their
results float32.
"""

from dataclasses import replace

from wanpipe.checkpoints.rename import RenameRule

_RULES: tuple[RenameRule, ...] = (
    RenameRule("patch_embedding.weight", "patch_embedding.weight", "patch", keep_float32=True),
    RenameRule("patch_embedding.bias", "patch_embedding.bias", keep_float32=True),
    RenameRule("text_embedding.0.{leaf}", "text_embedding.fc1.{leaf}"),
    RenameRule("text_embedding.2.{leaf}", "text_embedding.fc2.{leaf}"),
    RenameRule("time_embedding.0.{leaf}", "time_embedding.fc1.{leaf}", keep_float32=True),
    RenameRule("time_embedding.2.{leaf}", "time_embedding.fc2.{leaf}", keep_float32=True),
    RenameRule("time_projection.1.{leaf}", "time_projection.{leaf}", keep_float32=True),
    RenameRule("blocks.{i}.modulation", "blocks.{i}.modulation", "flatten", keep_float32=True),
    RenameRule(
        "blocks.{i}.self_attn.norm_q.weight",
        "blocks.{i}.self_attn.norm_q.weight",
        keep_float32=True,
    ),
    RenameRule(
        "blocks.{i}.self_attn.norm_k.weight",
        "blocks.{i}.self_attn.norm_k.weight",
        keep_float32=True,
    ),
    RenameRule("blocks.{i}.self_attn.q.{leaf}", "blocks.{i}.self_attn.q.{leaf}"),
    RenameRule("blocks.{i}.self_attn.k.{leaf}", "blocks.{i}.self_attn.k.{leaf}"),
    RenameRule("blocks.{i}.self_attn.v.{leaf}", "blocks.{i}.self_attn.v.{leaf}"),
    RenameRule("blocks.{i}.self_attn.o.{leaf}", "blocks.{i}.self_attn.o.{leaf}"),
    RenameRule("blocks.{i}.norm3.{leaf}", "blocks.{i}.norm3.{leaf}", keep_float32=True),
    RenameRule(
        "blocks.{i}.cross_attn.norm_q.weight",
        "blocks.{i}.cross_attn.norm_q.weight",
        keep_float32=True,
    ),
    RenameRule(
        "blocks.{i}.cross_attn.norm_k.weight",
        "blocks.{i}.cross_attn.norm_k.weight",
        keep_float32=True,
    ),
    RenameRule("blocks.{i}.cross_attn.q.{leaf}", "blocks.{i}.cross_attn.q.{leaf}"),
    RenameRule("blocks.{i}.cross_attn.k.{leaf}", "blocks.{i}.cross_attn.k.{leaf}"),
    RenameRule("blocks.{i}.cross_attn.v.{leaf}", "blocks.{i}.cross_attn.v.{leaf}"),
    RenameRule("blocks.{i}.cross_attn.o.{leaf}", "blocks.{i}.cross_attn.o.{leaf}"),
    # image tokens of Wan2.1 I2V
    RenameRule(
        "blocks.{i}.cross_attn.norm_k_img.weight",
        "blocks.{i}.cross_attn.norm_k_img.weight",
        keep_float32=True,
    ),
    RenameRule("blocks.{i}.cross_attn.k_img.{leaf}", "blocks.{i}.cross_attn.k_img.{leaf}"),
    RenameRule("blocks.{i}.cross_attn.v_img.{leaf}", "blocks.{i}.cross_attn.v_img.{leaf}"),
    # positions of the image tokens of FLF2V
    RenameRule("img_emb.emb_pos", "img_emb.pos_embedding", "flatten", keep_float32=True),
    RenameRule("img_emb.proj.0.{leaf}", "img_emb.norm1.{leaf}", keep_float32=True),
    RenameRule("img_emb.proj.1.{leaf}", "img_emb.fc1.{leaf}"),
    RenameRule("img_emb.proj.3.{leaf}", "img_emb.fc2.{leaf}"),
    RenameRule("img_emb.proj.4.{leaf}", "img_emb.norm2.{leaf}", keep_float32=True),
    RenameRule("blocks.{i}.ffn.0.{leaf}", "blocks.{i}.ffn.fc1.{leaf}"),
    RenameRule("blocks.{i}.ffn.2.{leaf}", "blocks.{i}.ffn.fc2.{leaf}"),
    # the official head computes in float32
    RenameRule("head.modulation", "head.modulation", "flatten", keep_float32=True),
    RenameRule("head.head.{leaf}", "head.linear.{leaf}", keep_float32=True),
)
# a VACE block is a block with one or two layers more
RULES: tuple[RenameRule, ...] = (
    *_RULES,
    # of sparse attention, which FastWan2.1 was trained with (FastVideo, `WanTransformerBlock_VSA`);
    # FastVideo's own MLX runtime attends to all tokens without them
    RenameRule("blocks.{i}.to_gate_compress.{leaf}", None),
    RenameRule(
        "vace_patch_embedding.weight", "vace_patch_embedding.weight", "patch", keep_float32=True
    ),
    RenameRule("vace_patch_embedding.bias", "vace_patch_embedding.bias", keep_float32=True),
    *(
        replace(rule, pattern=f"vace_{rule.pattern}", target=f"vace_{rule.target}")
        for rule in _RULES
        if rule.pattern.startswith("blocks.")
    ),
    RenameRule("vace_blocks.{i}.before_proj.{leaf}", "vace_blocks.{i}.before_proj.{leaf}"),
    RenameRule("vace_blocks.{i}.after_proj.{leaf}", "vace_blocks.{i}.after_proj.{leaf}"),
)
