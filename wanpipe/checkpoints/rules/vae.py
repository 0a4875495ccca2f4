"""How the tensors of the official VAE files are called in our decoder and encoder.

Data for the engine in `rename`. Each half drops what belongs to the other, name by name.
"""

from wanpipe.checkpoints.rename import RenameRule


def _residual(source: str, target: str) -> tuple[RenameRule, ...]:
    return (
        RenameRule(
            f"{source}.residual.0.gamma", f"{target}.norm1.gamma", "flatten", keep_float32=True
        ),
        RenameRule(f"{source}.residual.2.{{leaf}}", f"{target}.conv1.{{leaf}}", "conv"),
        RenameRule(
            f"{source}.residual.3.gamma", f"{target}.norm2.gamma", "flatten", keep_float32=True
        ),
        RenameRule(f"{source}.residual.6.{{leaf}}", f"{target}.conv2.{{leaf}}", "conv"),
    )


def _path(source: str, target: str) -> tuple[RenameRule, ...]:
    return (
        *_residual(source, target),
        RenameRule(f"{source}.shortcut.{{leaf}}", f"{target}.shortcut.{{leaf}}", "flatten"),
        RenameRule(f"{source}.resample.1.{{leaf}}", f"{target}.conv.{{leaf}}", "conv"),
        RenameRule(f"{source}.time_conv.{{leaf}}", f"{target}.time_conv.{{leaf}}", "conv"),
    )


def _ends(half: str) -> tuple[RenameRule, ...]:
    attention = f"{half}.middle.1"
    return (
        RenameRule(f"{half}.conv1.{{leaf}}", "input.{leaf}", "conv"),
        *_residual(f"{half}.middle.0", "middle.before"),
        RenameRule(
            f"{attention}.norm.gamma", "middle.attention.norm.gamma", "flatten", keep_float32=True
        ),
        RenameRule(f"{attention}.to_qkv.{{leaf}}", "middle.attention.qkv.{leaf}", "flatten"),
        RenameRule(f"{attention}.proj.{{leaf}}", "middle.attention.proj.{leaf}", "flatten"),
        *_residual(f"{half}.middle.2", "middle.after"),
        RenameRule(f"{half}.head.0.gamma", "norm.gamma", "flatten", keep_float32=True),
        RenameRule(f"{half}.head.2.{{leaf}}", "output.{leaf}", "conv"),
    )


def _dropped(rules: tuple[RenameRule, ...]) -> tuple[RenameRule, ...]:
    return tuple(RenameRule(rule.pattern, None) for rule in rules)


_ENCODER = (RenameRule("conv1.{leaf}", "latent.{leaf}", "flatten"), *_ends("encoder"))
_DECODER = (RenameRule("conv2.{leaf}", "latent.{leaf}", "flatten"), *_ends("decoder"))
_ENCODER_21 = (*_ENCODER, *_path("encoder.downsamples.{i}", "down.{i}"))
_DECODER_21 = (*_DECODER, *_path("decoder.upsamples.{i}", "up.{i}"))
_ENCODER_22 = (*_ENCODER, *_path("encoder.downsamples.{i}.downsamples.{j}", "down.{i}.blocks.{j}"))
_DECODER_22 = (*_DECODER, *_path("decoder.upsamples.{i}.upsamples.{j}", "up.{i}.blocks.{j}"))

RULES_21_ENCODER = (*_ENCODER_21, *_dropped(_DECODER_21))
RULES_21_DECODER = (*_DECODER_21, *_dropped(_ENCODER_21))
RULES_22_ENCODER = (*_ENCODER_22, *_dropped(_DECODER_22))
RULES_22_DECODER = (*_DECODER_22, *_dropped(_ENCODER_22))
