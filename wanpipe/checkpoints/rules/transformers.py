"""Names that transformers gives the tensors of umT5 and CLIP (modeling_umt5.py, modeling_clip.py),
and the official ones: data, no code. ComfyUI's files of both have these names too.
"""

from wanpipe.checkpoints.rename import RenameRule

_LAYER = "encoder.block.{i}.layer"
UMT5: tuple[RenameRule, ...] = (
    RenameRule("shared.weight", "token_embedding.weight"),
    RenameRule("encoder.embed_tokens.weight", None),  # the same matrix, tied
    RenameRule(
        "spiece_model", None
    ),  # ComfyUI puts the tokenizer there; wanpipe reads tokenizer.json
    RenameRule(f"{_LAYER}.0.layer_norm.weight", "blocks.{i}.norm1.weight"),
    RenameRule(f"{_LAYER}.0.SelfAttention.q.weight", "blocks.{i}.attn.q.weight"),
    RenameRule(f"{_LAYER}.0.SelfAttention.k.weight", "blocks.{i}.attn.k.weight"),
    RenameRule(f"{_LAYER}.0.SelfAttention.v.weight", "blocks.{i}.attn.v.weight"),
    RenameRule(f"{_LAYER}.0.SelfAttention.o.weight", "blocks.{i}.attn.o.weight"),
    RenameRule(
        f"{_LAYER}.0.SelfAttention.relative_attention_bias.weight",
        "blocks.{i}.pos_embedding.embedding.weight",
    ),
    RenameRule(f"{_LAYER}.1.layer_norm.weight", "blocks.{i}.norm2.weight"),
    RenameRule(f"{_LAYER}.1.DenseReluDense.wi_0.weight", "blocks.{i}.ffn.gate.0.weight"),
    RenameRule(f"{_LAYER}.1.DenseReluDense.wi_1.weight", "blocks.{i}.ffn.fc1.weight"),
    RenameRule(f"{_LAYER}.1.DenseReluDense.wo.weight", "blocks.{i}.ffn.fc2.weight"),
    RenameRule("encoder.final_layer_norm.weight", "norm.weight"),
)

_TOWER = "vision_model.encoder.layers.{i}"
_BLOCK = "visual.transformer.{i}"
CLIP: tuple[RenameRule, ...] = (
    RenameRule("vision_model.embeddings.class_embedding", "visual.cls_embedding"),
    RenameRule("vision_model.embeddings.patch_embedding.weight", "visual.patch_embedding.weight"),
    RenameRule("vision_model.embeddings.position_embedding.weight", "visual.pos_embedding"),
    RenameRule("vision_model.embeddings.position_ids", None),
    RenameRule("vision_model.pre_layrnorm.{leaf}", "visual.pre_norm.{leaf}"),  # spelled so
    RenameRule(f"{_TOWER}.layer_norm1.{{leaf}}", f"{_BLOCK}.norm1.{{leaf}}"),
    # three that become one: joined in this order
    RenameRule(f"{_TOWER}.self_attn.q_proj.{{leaf}}", f"{_BLOCK}.attn.to_qkv.{{leaf}}"),
    RenameRule(f"{_TOWER}.self_attn.k_proj.{{leaf}}", f"{_BLOCK}.attn.to_qkv.{{leaf}}"),
    RenameRule(f"{_TOWER}.self_attn.v_proj.{{leaf}}", f"{_BLOCK}.attn.to_qkv.{{leaf}}"),
    RenameRule(f"{_TOWER}.self_attn.out_proj.{{leaf}}", f"{_BLOCK}.attn.proj.{{leaf}}"),
    RenameRule(f"{_TOWER}.layer_norm2.{{leaf}}", f"{_BLOCK}.norm2.{{leaf}}"),
    RenameRule(f"{_TOWER}.mlp.fc1.{{leaf}}", f"{_BLOCK}.mlp.0.{{leaf}}"),
    RenameRule(f"{_TOWER}.mlp.fc2.{{leaf}}", f"{_BLOCK}.mlp.2.{{leaf}}"),
    RenameRule("vision_model.post_layernorm.{leaf}", "visual.post_norm.{leaf}"),
    RenameRule("visual_projection.weight", "visual.head"),
)
