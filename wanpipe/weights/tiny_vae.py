"""The file of a tiny autoencoder (TAEHV): what its decoder is, and its weights.

Dimensions follow from the shapes, so any of its files that has this decoder can be read. Opening
one reads its header alone.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.checkpoints.tensors import TensorInfo, quote_name
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import TinyVAEConfig
from wanpipe.store import Store

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.checkpoints.read import TensorFile
    from wanpipe.checkpoints.rename import PlannedRename
    from wanpipe.models.vae.tiny import Decoder

# by the latent channels of a Wan model: the file of TAEHV, and the side of its patches in pixels
FILES, PATCHES = {16: "taew2_1", 48: "taew2_2"}, {16: 1, 48: 2}
LARGEST_WIDTH = 1 << 14  # channels; TAEHV has 256


@dataclass(frozen=True, kw_only=True)
class TinyVAE:
    """The file of a tiny autoencoder: its content hash, and the dimensions of its decoder."""

    path: Path
    hash: str
    config: TinyVAEConfig
    renames: "tuple[PlannedRename, ...]" = field(repr=False)

    def check(self, channels: int) -> None:
        """Raise UsageError unless it decodes latents of so many channels to frames of the size that
        the VAE gives.
        """
        found = self.config.z_dim, self.config.patch_size
        if found != (channels, PATCHES.get(channels)):
            raise UsageError(
                f"{self.path} must decode latents of {channels} channels, got one for {found[0]} "
                f"with patches of {found[1]}; use {FILES.get(channels, 'the VAE')}"
            )

    def load(self, dtype: "mx.Dtype", store: Store) -> "Decoder":
        """Read the decoder's weights. Raises CheckpointError for a file that has changed, or that
        holds numbers that are not finite.
        """
        import mlx.core as mx
        import numpy as np

        from wanpipe.checkpoints.read import open_tensors
        from wanpipe.checkpoints.rename import apply_transform
        from wanpipe.checkpoints.rules import taehv
        from wanpipe.models.vae.tiny import Decoder

        if store.hash_cache.hash(self.path) != self.hash:
            raise CheckpointError(f"{self.path} has changed meanwhile; start again")
        network, weights = Decoder(self.config), []
        with open_tensors(self.path) as file:
            for one in self.renames:
                values = file.read_float32(one.source)
                if not np.isfinite(values).all():
                    raise CheckpointError(
                        f"{self.path}: {quote_name(one.source)} holds numbers that are not finite; "
                        "download it again"
                    )
                if one.source in taehv.MATRICES:
                    values = values[-one.shape[0] :]
                values = apply_transform(values, one.transform)
                weights.append((one.target, mx.array(values).astype(dtype)))
        network.load_weights(weights)
        mx.eval(network.parameters())
        return network


def open_tiny_vae(path: Path, channels: int, store: Store) -> TinyVAE:
    """Open the file of a tiny autoencoder, .safetensors or .pth, for latents of so many channels.

    Raises CheckpointError for a file that cannot be read or is another network, UsageError for one
    that is for other latents.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; give the path of taew2_1 or taew2_2")
    try:
        digest = store.hash_cache.hash(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    tiny = read_tiny_vae(path, digest)
    tiny.check(channels)
    return tiny


@lru_cache(8)  # a plan of many videos asks for each
def read_tiny_vae(path: Path, digest: str) -> TinyVAE:
    """Read the header of a file, whose content hash is given. Raises CheckpointError."""
    from wanpipe.checkpoints.dtypes import FLOATS
    from wanpipe.checkpoints.read import open_tensors
    from wanpipe.checkpoints.rename import plan_renames
    from wanpipe.checkpoints.rules import taehv
    from wanpipe.models.vae.tiny import Decoder
    from wanpipe.weights.load import parameter_shapes

    with open_tensors(path) as file:
        config = read_config(file)
        targets = parameter_shapes(Decoder(config))
        tensors = dict(file.tensors)
        for number, name in enumerate(taehv.MATRICES):
            if name in tensors:
                rows = targets[f"levels.{number}.grow.matrix"][0]
                tensors[name] = last_rows(tensors[name], rows)
        renames = plan_renames(tensors, taehv.RULES, targets, str(path))
        for one in renames:
            if (found := tensors[one.source].dtype) not in FLOATS:
                raise CheckpointError(
                    f"{path}: {quote_name(one.source)} must hold floating-point numbers, got "
                    f"{found}"
                )
    return TinyVAE(path=path, hash=digest, config=config, renames=tuple(renames))


def read_config(file: "TensorFile") -> TinyVAEConfig:
    """Read the dimensions off the shapes. Raises CheckpointError for another network."""
    from wanpipe.checkpoints.rules import taehv

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
    second, third, last = (kernel[0] for kernel in kernels)
    widths = (first[0], second, third, last)
    return TinyVAEConfig(z_dim=first[1], widths=widths, patch_size=patch)


def last_rows(info: TensorInfo, rows: int) -> TensorInfo:
    """Return the last rows of a matrix that makes frames, if it makes more than needed.

    The reference takes these of files that share weights with a network that makes more frames.
    """
    if not info.shape or info.shape[0] <= rows:
        return info
    return replace(info, shape=(rows, *info.shape[1:]))
