"""Official names of the umT5 encoder's tensors (wan/modules/t5.py) and ours: data, no code."""

from wanpipe.checkpoints.rename import RenameRule

RULES: tuple[RenameRule, ...] = (
    RenameRule("token_embedding.weight", "token_embedding.weight"),
    RenameRule("blocks.{i}.norm1.weight", "blocks.{i}.norm1.weight", keep_float32=True),
    RenameRule("blocks.{i}.attn.q.weight", "blocks.{i}.attn.q.weight"),
    RenameRule("blocks.{i}.attn.k.weight", "blocks.{i}.attn.k.weight"),
    RenameRule("blocks.{i}.attn.v.weight", "blocks.{i}.attn.v.weight"),
    RenameRule("blocks.{i}.attn.o.weight", "blocks.{i}.attn.o.weight"),
    RenameRule("blocks.{i}.norm2.weight", "blocks.{i}.norm2.weight", keep_float32=True),
    RenameRule("blocks.{i}.ffn.gate.0.weight", "blocks.{i}.ffn.gate.weight"),
    RenameRule("blocks.{i}.ffn.fc1.weight", "blocks.{i}.ffn.fc1.weight"),
    RenameRule("blocks.{i}.ffn.fc2.weight", "blocks.{i}.ffn.fc2.weight"),
    RenameRule(
        "blocks.{i}.pos_embedding.embedding.weight", "blocks.{i}.position_bias", keep_float32=True
    ),
    RenameRule("norm.weight", "norm.weight", keep_float32=True),
)
