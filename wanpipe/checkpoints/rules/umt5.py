"""Official names of the umT5 encoder's tensors (wan/modules/t5.py) and ours: data, no code."""

from wanpipe.checkpoints.rename import Row

ROWS: tuple[Row, ...] = (
    Row("token_embedding.weight", "token_embedding.weight"),
    Row("blocks.{i}.norm1.weight", "blocks.{i}.norm1.weight", full=True),
    Row("blocks.{i}.attn.q.weight", "blocks.{i}.attn.q.weight"),
    Row("blocks.{i}.attn.k.weight", "blocks.{i}.attn.k.weight"),
    Row("blocks.{i}.attn.v.weight", "blocks.{i}.attn.v.weight"),
    Row("blocks.{i}.attn.o.weight", "blocks.{i}.attn.o.weight"),
    Row("blocks.{i}.norm2.weight", "blocks.{i}.norm2.weight", full=True),
    Row("blocks.{i}.ffn.gate.0.weight", "blocks.{i}.ffn.gate.weight"),
    Row("blocks.{i}.ffn.fc1.weight", "blocks.{i}.ffn.fc1.weight"),
    Row("blocks.{i}.ffn.fc2.weight", "blocks.{i}.ffn.fc2.weight"),
    Row("blocks.{i}.pos_embedding.embedding.weight", "blocks.{i}.position_bias", full=True),
    Row("norm.weight", "norm.weight", full=True),
)
