"""Official names of the DiT's tensors (wan/modules/model.py) and ours: data, no code.

Biases of layers that multiply in the compute dtype have it too: a float32 bias would make their
results float32.
"""

from wanpipe.checkpoints.rename import Row

ROWS: tuple[Row, ...] = (
    Row("patch_embedding.weight", "patch_embedding.weight", "patch", full=True),
    Row("patch_embedding.bias", "patch_embedding.bias", full=True),
    Row("text_embedding.0.{leaf}", "text_embedding.fc1.{leaf}"),
    Row("text_embedding.2.{leaf}", "text_embedding.fc2.{leaf}"),
    Row("time_embedding.0.{leaf}", "time_embedding.fc1.{leaf}", full=True),
    Row("time_embedding.2.{leaf}", "time_embedding.fc2.{leaf}", full=True),
    Row("time_projection.1.{leaf}", "time_projection.{leaf}", full=True),
    Row("blocks.{i}.modulation", "blocks.{i}.modulation", "flatten", full=True),
    Row("blocks.{i}.self_attn.norm_q.weight", "blocks.{i}.self_attn.norm_q.weight", full=True),
    Row("blocks.{i}.self_attn.norm_k.weight", "blocks.{i}.self_attn.norm_k.weight", full=True),
    Row("blocks.{i}.self_attn.q.{leaf}", "blocks.{i}.self_attn.q.{leaf}"),
    Row("blocks.{i}.self_attn.k.{leaf}", "blocks.{i}.self_attn.k.{leaf}"),
    Row("blocks.{i}.self_attn.v.{leaf}", "blocks.{i}.self_attn.v.{leaf}"),
    Row("blocks.{i}.self_attn.o.{leaf}", "blocks.{i}.self_attn.o.{leaf}"),
    Row("blocks.{i}.norm3.{leaf}", "blocks.{i}.norm3.{leaf}", full=True),
    Row("blocks.{i}.cross_attn.norm_q.weight", "blocks.{i}.cross_attn.norm_q.weight", full=True),
    Row("blocks.{i}.cross_attn.norm_k.weight", "blocks.{i}.cross_attn.norm_k.weight", full=True),
    Row("blocks.{i}.cross_attn.q.{leaf}", "blocks.{i}.cross_attn.q.{leaf}"),
    Row("blocks.{i}.cross_attn.k.{leaf}", "blocks.{i}.cross_attn.k.{leaf}"),
    Row("blocks.{i}.cross_attn.v.{leaf}", "blocks.{i}.cross_attn.v.{leaf}"),
    Row("blocks.{i}.cross_attn.o.{leaf}", "blocks.{i}.cross_attn.o.{leaf}"),
    # image tokens of Wan2.1 I2V
    Row(
        "blocks.{i}.cross_attn.norm_k_img.weight",
        "blocks.{i}.cross_attn.norm_k_img.weight",
        full=True,
    ),
    Row("blocks.{i}.cross_attn.k_img.{leaf}", "blocks.{i}.cross_attn.k_img.{leaf}"),
    Row("blocks.{i}.cross_attn.v_img.{leaf}", "blocks.{i}.cross_attn.v_img.{leaf}"),
    Row("img_emb.proj.0.{leaf}", "img_emb.norm1.{leaf}", full=True),
    Row("img_emb.proj.1.{leaf}", "img_emb.fc1.{leaf}"),
    Row("img_emb.proj.3.{leaf}", "img_emb.fc2.{leaf}"),
    Row("img_emb.proj.4.{leaf}", "img_emb.norm2.{leaf}", full=True),
    Row("blocks.{i}.ffn.0.{leaf}", "blocks.{i}.ffn.fc1.{leaf}"),
    Row("blocks.{i}.ffn.2.{leaf}", "blocks.{i}.ffn.fc2.{leaf}"),
    # the official head computes in float32
    Row("head.modulation", "head.modulation", "flatten", full=True),
    Row("head.head.{leaf}", "head.linear.{leaf}", full=True),
)
