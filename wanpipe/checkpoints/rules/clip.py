"""Official names of CLIP's tensors (wan/modules/clip.py) and ours: data, no code but `rows`.

Only the vision tower is kept, without its last block and what follows it: Wan uses the tokens
before.
"""

from wanpipe.checkpoints.rename import Row

# pattern after `visual.transformer.{i}.`, target after `blocks.{i}.`, full
BLOCK = (
    ("norm1.{leaf}", "norm1.{leaf}", True),
    ("attn.to_qkv.{leaf}", "attn.qkv.{leaf}", False),
    ("attn.proj.{leaf}", "attn.o.{leaf}", False),
    ("norm2.{leaf}", "norm2.{leaf}", True),
    ("mlp.0.{leaf}", "mlp.fc1.{leaf}", False),
    ("mlp.2.{leaf}", "mlp.fc2.{leaf}", False),
)

ROWS: tuple[Row, ...] = (
    Row("visual.patch_embedding.weight", "patch_embedding.weight", "patch", full=True),
    Row("visual.cls_embedding", "cls_embedding", "flatten", full=True),
    Row("visual.pos_embedding", "pos_embedding", "flatten", full=True),
    Row("visual.pre_norm.{leaf}", "pre_norm.{leaf}", full=True),
    *(
        Row(f"visual.transformer.{{i}}.{source}", f"blocks.{{i}}.{target}", full=full)
        for source, target, full in BLOCK
    ),
    # what follows the last block
    Row("visual.post_norm.{leaf}", None),
    Row("visual.head", None),
    Row("log_scale", None),
    # the text tower
    Row("textual.token_embedding.{leaf}", None),
    Row("textual.type_embedding.{leaf}", None),
    Row("textual.pos_embedding.{leaf}", None),
    Row("textual.blocks.{i}.attn.q.{leaf}", None),
    Row("textual.blocks.{i}.attn.k.{leaf}", None),
    Row("textual.blocks.{i}.attn.v.{leaf}", None),
    Row("textual.blocks.{i}.attn.o.{leaf}", None),
    Row("textual.blocks.{i}.norm1.{leaf}", None),
    Row("textual.blocks.{i}.norm2.{leaf}", None),
    Row("textual.blocks.{i}.ffn.{j}.{leaf}", None),
    Row("textual.norm.{leaf}", None),
    Row("textual.head.{j}.{leaf}", None),
)


def rows(layers: int) -> tuple[Row, ...]:
    """ROWS for a tower of `layers` blocks, of which the last is dropped."""
    last = tuple(Row(f"visual.transformer.{layers - 1}.{source}", None) for source, _, _ in BLOCK)
    return last + ROWS
