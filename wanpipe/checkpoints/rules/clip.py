"""Official names of CLIP's tensors (wan/modules/clip.py) and ours: data, no code but `rules`.

Only the vision tower is kept, without its last block and what follows it: Wan uses the tokens
before.
"""

from wanpipe.checkpoints.rename import RenameRule

# pattern after `visual.transformer.{i}.`, target after `blocks.{i}.`, keep_float32
BLOCK = (
    ("norm1.{leaf}", "norm1.{leaf}", True),
    ("attn.to_qkv.{leaf}", "attn.qkv.{leaf}", False),
    ("attn.proj.{leaf}", "attn.o.{leaf}", False),
    ("norm2.{leaf}", "norm2.{leaf}", True),
    ("mlp.0.{leaf}", "mlp.fc1.{leaf}", False),
    ("mlp.2.{leaf}", "mlp.fc2.{leaf}", False),
)

RULES: tuple[RenameRule, ...] = (
    RenameRule(
        "visual.patch_embedding.weight", "patch_embedding.weight", "patch", keep_float32=True
    ),
    RenameRule("visual.cls_embedding", "cls_embedding", "flatten", keep_float32=True),
    RenameRule("visual.pos_embedding", "pos_embedding", "flatten", keep_float32=True),
    RenameRule("visual.pre_norm.{leaf}", "pre_norm.{leaf}", keep_float32=True),
    *(
        RenameRule(
            f"visual.transformer.{{i}}.{source}", f"blocks.{{i}}.{target}", keep_float32=float32
        )
        for source, target, float32 in BLOCK
    ),
    # what follows the last block
    RenameRule("visual.post_norm.{leaf}", None),
    RenameRule("visual.head", None),
    RenameRule("log_scale", None),
    # the text tower
    RenameRule("textual.token_embedding.{leaf}", None),
    RenameRule("textual.type_embedding.{leaf}", None),
    RenameRule("textual.pos_embedding.{leaf}", None),
    RenameRule("textual.blocks.{i}.attn.q.{leaf}", None),
    RenameRule("textual.blocks.{i}.attn.k.{leaf}", None),
    RenameRule("textual.blocks.{i}.attn.v.{leaf}", None),
    RenameRule("textual.blocks.{i}.attn.o.{leaf}", None),
    RenameRule("textual.blocks.{i}.norm1.{leaf}", None),
    RenameRule("textual.blocks.{i}.norm2.{leaf}", None),
    RenameRule("textual.blocks.{i}.ffn.{j}.{leaf}", None),
    RenameRule("textual.norm.{leaf}", None),
    RenameRule("textual.head.{j}.{leaf}", None),
)


def rules(layers: int) -> tuple[RenameRule, ...]:
    """RULES for a tower of `layers` blocks, of which the last is dropped."""
    last = tuple(
        RenameRule(f"visual.transformer.{layers - 1}.{source}", None) for source, _, _ in BLOCK
    )
    return last + RULES
