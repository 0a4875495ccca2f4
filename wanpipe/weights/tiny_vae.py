"""The file of a tiny autoencoder (TAEHV): what its decoder is, and its weights.

Dimensions follow from the shapes, so any of its files that has this decoder can be read. Opening
one reads its header alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.checkpoints.rules import taehv
from wanpipe.checkpoints.tensors import TensorInfo, quote_name
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import TinyVAEConfig
from wanpipe.store import Store

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.checkpoints.read import TensorFile
    from wanpipe.checkpoints.rename import PlannedRename
    from wanpipe.models.vae.tiny import Decoder

FILES = {16: "taew2_1", 48: "taew2_2"}  # of TAEHV, by latent channels
LARGEST_WIDTH = 1 << 14  # channels; TAEHV has 256


@dataclass(frozen=True, kw_only=True)
class TinyVAE:
    """A file with the decoder of a tiny autoencoder: its content hash and its dimensions."""

    path: Path
    hash: str
    config: TinyVAEConfig
    renames: "tuple[PlannedRename, ...]" = field(repr=False)

    def check(self, channels: int, stride: int, subject: str) -> None:
        """Raise UsageError unless it decodes latents of `channels` to `stride` pixels a side."""
        if (self.config.z_dim, self.config.stride[1]) != (channels, stride):
            other = FILES.get(channels)
            raise UsageError(
                f"{self.path} decodes latents of {self.config.z_dim} channels, to "
                f"{self.config.stride[1]} pixels a side, but {subject} has {channels} channels and "
                f"{stride} pixels; use {other or 'the VAE of the model'}"
            )

    def load(self, dtype: "mx.Dtype", store: Store) -> "Decoder":
        """Read the decoder's weights. Raises CheckpointError for a file that has changed."""
        import mlx.core as mx

        from wanpipe.checkpoints.read import open_tensors
        from wanpipe.checkpoints.rename import apply_transform
        from wanpipe.models.vae.tiny import Decoder

        if store.hash_cache.hash(self.path) != self.hash:
            raise CheckpointError(f"{self.path} has changed meanwhile; start again")
        network, weights = Decoder(self.config), []
        with open_tensors(self.path) as file:
            for one in self.renames:
                values = file.read_float32(one.source)
                if one.source in taehv.MATRICES:
                    values = values[-one.shape[0] :]
                values = apply_transform(values, one.transform)
                weights.append((one.target, mx.array(values).astype(dtype)))
        network.load_weights(weights)
        mx.eval(network.parameters())
        return network


def open_tiny_vae(path: Path, store: Store) -> TinyVAE:
    """Open the file of a tiny autoencoder, .safetensors or .pth.

    Raises CheckpointError for a file that cannot be read, or that does not have its decoder.
    """
    from wanpipe.checkpoints.dtypes import FLOATS
    from wanpipe.checkpoints.read import open_tensors
    from wanpipe.checkpoints.rename import plan_renames
    from wanpipe.models.vae.tiny import Decoder
    from wanpipe.weights.load import parameter_shapes

    with open_tensors(path) as file:
        config = read_config(file)
        targets = parameter_shapes(Decoder(config))
        tensors = {
            name: shortened(name, info, targets) if name in taehv.MATRICES else info
            for name, info in file.tensors.items()
        }
        renames = plan_renames(tensors, taehv.RULES, targets, str(path))
        for one in renames:
            if (found := tensors[one.source].dtype) not in FLOATS:
                raise CheckpointError(
                    f"{path}: {quote_name(one.source)} must hold floating-point numbers, got "
                    f"{found}"
                )
    digest = store.hash_cache.hash(path)
    return TinyVAE(path=path, hash=digest, config=config, renames=tuple(renames))


def read_config(file: "TensorFile") -> TinyVAEConfig:
    """Read the dimensions off the shapes. Raises CheckpointError for another network."""
    path, tensors = file.paths[0], file.tensors
    if taehv.SUPER in tensors:
        raise CheckpointError(
            f"{path} has the larger decoder of the files called _super, which wanpipe does not "
            "have; use taew2_1 or taew2_2"
        )
    names = (f"{taehv.INPUT}.weight", *taehv.KERNELS, f"{taehv.OUTPUT}.weight")
    shapes = [tensors[name].shape if name in tensors else () for name in names]
    if any(len(shape) != 4 or not 0 < shape[0] <= LARGEST_WIDTH for shape in shapes):
        raise CheckpointError(
            f"{path} is not the tiny autoencoder TAEHV: no convolutions at "
            f"{', '.join(names)}; use taew2_1 or taew2_2"
        )
    first, *kernels, output = shapes
    patch = isqrt(output[0] // 3)
    if 3 * patch**2 != output[0] or not 0 < first[1] <= LARGEST_WIDTH:
        raise CheckpointError(
            f"{path} must make three colors of square patches from its latent channels, got "
            f"{output[0]} values from {first[1]} channels; use taew2_1 or taew2_2"
        )
    widths = (first[0], *(kernel[0] for kernel in kernels))
    return TinyVAEConfig(z_dim=first[1], widths=widths, patch_size=patch)


def shortened(
    name: str, info: TensorInfo, targets: Mapping[str, tuple[int, ...]]
) -> TensorInfo:
    """Return a matrix that makes frames without the first rows, if it is for more frames.

    Files may share weights with a model that makes more; the reference takes the last rows, too.
    """
    rows = targets[f"stages.{taehv.MATRICES.index(name)}.grow.matrix"][0]
    if not info.shape or info.shape[0] <= rows:
        return info
    return replace(info, shape=(rows, *info.shape[1:]))
