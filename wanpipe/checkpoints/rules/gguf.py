"""Names that llama.cpp gives the tensors of umT5 (gguf, MODEL_ARCH.T5ENCODER), and the official
ones: data, no code. Transformers in GGUF have the official names.
"""

from wanpipe.checkpoints.rename import RenameRule

UMT5: tuple[RenameRule, ...] = (
    RenameRule("token_embd.weight", "token_embedding.weight"),
    RenameRule("enc.blk.{i}.attn_norm.weight", "blocks.{i}.norm1.weight"),
    RenameRule("enc.blk.{i}.attn_q.weight", "blocks.{i}.attn.q.weight"),
    RenameRule("enc.blk.{i}.attn_k.weight", "blocks.{i}.attn.k.weight"),
    RenameRule("enc.blk.{i}.attn_v.weight", "blocks.{i}.attn.v.weight"),
    RenameRule("enc.blk.{i}.attn_o.weight", "blocks.{i}.attn.o.weight"),
    RenameRule("enc.blk.{i}.attn_rel_b.weight", "blocks.{i}.pos_embedding.embedding.weight"),
    RenameRule("enc.blk.{i}.ffn_norm.weight", "blocks.{i}.norm2.weight"),
    RenameRule("enc.blk.{i}.ffn_gate.weight", "blocks.{i}.ffn.gate.0.weight"),
    RenameRule("enc.blk.{i}.ffn_up.weight", "blocks.{i}.ffn.fc1.weight"),
    RenameRule("enc.blk.{i}.ffn_down.weight", "blocks.{i}.ffn.fc2.weight"),
    RenameRule("enc.output_norm.weight", "norm.weight"),
)
