"""How the tensors of TAEHV, the tiny autoencoder for video, are called in our decoder.

Data for the engine in `rename`. In the file, layers are numbered with those that have no weights.
"""

from wanpipe.checkpoints.rename import RenameRule

INPUT, OUTPUT = "decoder.1", "decoder.22"  # the first and the last convolution
# of each level: its three blocks, the matrix that makes frames, and the convolution after it
LEVELS = (((3, 4, 5), 7, 8), ((9, 10, 11), 13, 14), ((15, 16, 17), 19, 20))
MATRICES = tuple(f"decoder.{matrix}.conv.weight" for _, matrix, _ in LEVELS)
KERNELS = tuple(f"decoder.{last}.weight" for _, _, last in LEVELS)
SUPER = "decoder.1.conv.0.weight"  # only the larger decoder, of files called _super, has it


def _level(level: int, blocks: tuple[int, ...], matrix: int, last: int) -> tuple[RenameRule, ...]:
    target = f"levels.{level}"
    return (
        *(
            RenameRule(
                f"decoder.{source}.conv.{2 * index}.{{leaf}}",
                f"{target}.blocks.{block}.conv{index + 1}.{{leaf}}",
                "conv",
            )
            for block, source in enumerate(blocks)
            for index in range(3)
        ),
        RenameRule(f"decoder.{matrix}.conv.weight", f"{target}.grow.matrix", "flatten"),
        RenameRule(f"decoder.{last}.weight", f"{target}.grow.kernel", "conv"),
    )


_ENCODER = ("encoder.{i}", "encoder.{i}.conv", "encoder.{i}.conv.{j}", "encoder.{i}.skip")

RULES = (
    RenameRule(f"{INPUT}.{{leaf}}", "input.{leaf}", "conv"),
    *(rule for number, level in enumerate(LEVELS) for rule in _level(number, *level)),
    RenameRule(f"{OUTPUT}.{{leaf}}", "output.{leaf}", "conv"),
    *(RenameRule(f"{module}.{{leaf}}", None) for module in _ENCODER),
)
