"""Dimensions of the official networks, and the video sizes of the measurements."""

from msgspec import UNSET
from msgspec.structs import replace

from wanpipe.models.config import CLIPConfig, DiTConfig, T5Config, TinyVAEConfig, VAEConfig
from wanpipe.models.geometry import Triple

# latents (F, H, W) of 81 frames of 832x480 and 1280x720, and of 121 frames of 1280x704
WIDE, HD, TI2V_HD = (21, 60, 104), (21, 90, 160), (31, 44, 80)

_LARGE = {"dim": 5120, "ffn_dim": 13824, "heads": 40, "layers": 40, "out_dim": 16}
T2V_1_3B = DiTConfig(dim=1536, ffn_dim=8960, heads=12, layers=30, in_dim=16, out_dim=16)
T2V_14B = DiTConfig(**_LARGE, in_dim=16)  # also each expert of T2V-A14B
I2V_14B = DiTConfig(**_LARGE, in_dim=36, clip_dim=1280)
FLF2V_14B = DiTConfig(**_LARGE, in_dim=36, clip_dim=1280, clip_positions=514)
I2V_A14B = DiTConfig(**_LARGE, in_dim=36)
VACE_1_3B = replace(T2V_1_3B, vace_layers=tuple(range(0, 30, 2)), vace_in_dim=96)
VACE_14B = replace(T2V_14B, vace_layers=tuple(range(0, 40, 5)), vace_in_dim=96)
TI2V_5B = DiTConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, in_dim=48, out_dim=48)

DITS: dict[str, tuple[DiTConfig, Triple]] = {
    "1.3b": (T2V_1_3B, WIDE),
    "14b": (T2V_14B, WIDE),
    "14b-720p": (T2V_14B, HD),
    "i2v-14b": (I2V_14B, WIDE),
    "i2v-14b-720p": (I2V_14B, HD),
    "flf2v-14b-720p": (FLF2V_14B, HD),
    "i2v-a14b-720p": (I2V_A14B, HD),
    "vace-1.3b": (VACE_1_3B, WIDE),
    "vace-14b": (VACE_14B, WIDE),
    "vace-14b-720p": (VACE_14B, HD),
    "ti2v-5b": (TI2V_5B, TI2V_HD),
}

VAE_21 = VAEConfig(version="2.1", encoder_dim=96, decoder_dim=96, z_dim=16)
VAE_22 = VAEConfig(version="2.2", encoder_dim=160, decoder_dim=256, z_dim=48)
# the decoders of TAEHV, by the version of the VAE that they stand for
TINY = {
    "2.1": TinyVAEConfig(z_dim=16, widths=(256, 128, 64, 64), patch_size=1),
    "2.2": TinyVAEConfig(z_dim=48, widths=(256, 128, 64, 64), patch_size=2),
}
T5_XXL = T5Config(vocab=256384, dim=4096, attention_dim=4096, ffn_dim=10240, heads=64, layers=24)
CLIP_H = CLIPConfig(dim=1280, ffn_dim=5120, heads=16, layers=32)


def with_layers(config: DiTConfig, layers: int) -> DiTConfig:
    """Return a network with fewer layers, and the VACE blocks that belong to them."""
    vace = config.vace_layers
    if vace is not UNSET:
        vace = tuple(layer for layer in vace if layer < layers)
    return replace(config, layers=layers, vace_layers=vace)
