"""Names and shapes of the tensors in the official Wan checkpoints.

A row is a name pattern and a shape. Letters are dimensions of a preset, and `{i}` is the number of
a layer. Numbers in a VAE path are multiples of the base width.
"""

from collections.abc import Iterator

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]

# D width, F feed forward, I input channels, O output channels of a patch, T text, Q frequencies,
# C channels of VACE's context
DIT = """
patch_embedding.weight D I 1 2 2
patch_embedding.bias D
text_embedding.0 D T
text_embedding.2 D D
time_embedding.0 D Q
time_embedding.2 D D
time_projection.1 6D D
blocks.{i}.modulation 1 6 D
blocks.{i}.self_attn.q D D
blocks.{i}.self_attn.k D D
blocks.{i}.self_attn.v D D
blocks.{i}.self_attn.o D D
blocks.{i}.self_attn.norm_q.weight D
blocks.{i}.self_attn.norm_k.weight D
blocks.{i}.norm3.weight D
blocks.{i}.norm3.bias D
blocks.{i}.cross_attn.q D D
blocks.{i}.cross_attn.k D D
blocks.{i}.cross_attn.v D D
blocks.{i}.cross_attn.o D D
blocks.{i}.cross_attn.norm_q.weight D
blocks.{i}.cross_attn.norm_k.weight D
blocks.{i}.ffn.0 F D
blocks.{i}.ffn.2 D F
head.modulation 1 2 D
head.head O D
"""
# what VACE adds; its blocks have the rows of DIT's, after vace_
VACE = """
vace_patch_embedding.weight D C 1 2 2
vace_patch_embedding.bias D
vace_blocks.{i}.after_proj D D
vace_blocks.0.before_proj D D
"""
VACE += "\n".join(f"vace_{row}" for row in DIT.split("\n") if row.startswith("blocks."))
# A attention width, V vocabulary, N heads
T5 = """
token_embedding.weight V D
blocks.{i}.norm1.weight D
blocks.{i}.attn.q.weight A D
blocks.{i}.attn.k.weight A D
blocks.{i}.attn.v.weight A D
blocks.{i}.attn.o.weight D A
blocks.{i}.norm2.weight D
blocks.{i}.ffn.gate.0.weight F D
blocks.{i}.ffn.fc1.weight F D
blocks.{i}.ffn.fc2.weight D F
blocks.{i}.pos_embedding.embedding.weight 32 N
norm.weight D
"""
# r in:out is a residual block; s resamples space, t space and time; multiples of the base width
VAE_PATHS = {
    "2.1": (
        "encoder.downsamples.{} r1:1 r1:1 s1:1 r1:2 r2:2 t2:2:2 r2:4 r4:4 t4:4:4 r4:4 r4:4",
        "decoder.upsamples.{} r4:4 r4:4 r4:4 t4:2:8 r2:4 r4:4 r4:4 t4:2:8 r2:2 r2:2 r2:2 s2:1 "
        "r1:1 r1:1 r1:1",
    ),
    "2.2": (
        "encoder.downsamples.0.downsamples.{} r1:1 r1:1 s1:1",
        "encoder.downsamples.1.downsamples.{} r1:2 r2:2 t2:2:2",
        "encoder.downsamples.2.downsamples.{} r2:4 r4:4 t4:4:4",
        "encoder.downsamples.3.downsamples.{} r4:4 r4:4",
        "decoder.upsamples.0.upsamples.{} r4:4 r4:4 r4:4 t4:4:8",
        "decoder.upsamples.1.upsamples.{} r4:4 r4:4 r4:4 t4:4:8",
        "decoder.upsamples.2.upsamples.{} r4:2 r2:2 r2:2 s2:2",
        "decoder.upsamples.3.upsamples.{} r2:1 r1:1 r1:1",
    ),
}
PIXEL_CHANNELS = {"2.1": 3, "2.2": 12}  # 2.2 packs 2x2 pixels


def expand(rows: str, layers: int, **letters: int) -> Tensors:
    """Yield every tensor of a table. A name that does not end in weight or bias has both."""
    for row in rows.split("\n"):
        pattern, *words = row.split() or [""]
        if not pattern:
            continue
        shape = tuple(_number(word, letters) for word in words)
        for i in range(layers) if "{i}" in pattern else [0]:
            name = pattern.format(i=i)
            whole = name.endswith((".weight", ".bias", ".modulation"))
            yield from [(name, shape)] if whole else _linear(name, shape)


def vae(version: str, encoder: int, decoder: int, latent: int) -> Tensors:
    """Yield every tensor of a VAE with these base widths and `latent` channels."""
    pixels = PIXEL_CHANNELS[version]
    yield from _coder("encoder", 4 * encoder, (encoder, pixels), (2 * latent, 4 * encoder))
    yield from _linear("conv1", (2 * latent, 2 * latent, 1, 1, 1))
    yield from _linear("conv2", (latent, latent, 1, 1, 1))
    yield from _coder("decoder", 4 * decoder, (4 * decoder, latent), (pixels, decoder))
    for path in VAE_PATHS[version]:
        pattern, *blocks = path.split()
        base = encoder if path.startswith("encoder") else decoder
        for index, block in enumerate(blocks):
            widths = [int(number) * base for number in block[1:].split(":")]
            yield from _block(pattern.format(index), block[0], widths)


def _coder(coder: str, wide: int, first: Shape, last: Shape) -> Tensors:
    yield from _linear(f"{coder}.conv1", (*first, 3, 3, 3))
    yield from _block(f"{coder}.middle.0", "r", [wide, wide])
    yield f"{coder}.middle.1.norm.gamma", (wide, 1, 1)
    yield from _linear(f"{coder}.middle.1.to_qkv", (3 * wide, wide, 1, 1))
    yield from _linear(f"{coder}.middle.1.proj", (wide, wide, 1, 1))
    yield from _block(f"{coder}.middle.2", "r", [wide, wide])
    yield f"{coder}.head.0.gamma", (last[1], 1, 1, 1)
    yield from _linear(f"{coder}.head.2", (*last, 3, 3, 3))


def _block(name: str, kind: str, widths: list[int]) -> Tensors:
    before, after, *time = widths
    if kind == "r":
        yield f"{name}.residual.0.gamma", (before, 1, 1, 1)
        yield from _linear(f"{name}.residual.2", (after, before, 3, 3, 3))
        yield f"{name}.residual.3.gamma", (after, 1, 1, 1)
        yield from _linear(f"{name}.residual.6", (after, after, 3, 3, 3))
        if before != after:
            yield from _linear(f"{name}.shortcut", (after, before, 1, 1, 1))
        return
    yield from _linear(f"{name}.resample.1", (after, before, 3, 3))
    for channels in time:
        yield from _linear(f"{name}.time_conv", (channels, before, 3, 1, 1))


def _linear(name: str, shape: Shape) -> Tensors:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _number(word: str, letters: dict[str, int]) -> int:
    if word.isdecimal():
        return int(word)
    return int(word[:-1] or 1) * letters[word[-1]]
