"""Every field of every material: the command of an entry, and the change that changes the field.

`tests.test_golden_fields` makes both entries of each row.
"""

from dataclasses import dataclass

from tests.golden_runs import CONVERT

T2V, I2V, A14B, A14B_I2V = "wan21-t2v", "wan21-i2v", "wan22-t2v-a14b", "wan22-i2v-a14b"
SIZE = "--width 32 --height 32 --num-frames 5"
FLOAT32 = f"{CONVERT} --dtype float32"
PACKED = f"{FLOAT32} --quantize --group-size 32"
SHRINK = "convert --from-model {model} --quantize --group-size 32"
TEXT = "encode-text --model {model} --prompt cat"
FLF2V = "wan21-flf2v"
IMAGE = f"encode-image --model {{model}} {SIZE} --image square.png"
WIDE = f"{IMAGE} --image wide.png"
BOTH = f"{IMAGE} --last-image wide.png"
TI2V, VACE = "wan22-ti2v-5b", "wan21-vace"
CLIP = f"encode-video --model {{model}} {SIZE} --video clip"
CONTINUED = f"{CLIP} --extend 1"
MASKED = f"{CLIP} --mask half.png"
REFERENCE = f"encode-video --model {{model}} {SIZE} --reference square.png"
START = f"denoise --model {{model}} --from {{text}} {SIZE}"
STEP = f"{START} --steps 4"
IMAGE_STEP = "denoise --model {model} --from {text} --from {image} --steps 4"
VIDEO_STEP = "denoise --model {model} --from {text} --from {clip} --steps 4"
MASKED_STEP = "denoise --model {model} --from {text} --from {masked clip} --steps 4"
GRID = f"{START} --shift 1 --timesteps"
CACHED = f"{START} --steps 10 --step-cache 0.05"
LORA = f"{STEP} --lora style.safetensors 1"
PAIR = f"{STEP} --guide-scale 3,4"
LCM = f"{STEP} --scheduler lcm"
ALONE = f"{STEP} --guide-scale 1"  # with one pass
NAG = f"{ALONE} --nag 11"
# from a step that no other row has, since a step is continued as the latest of its runs
BRANCH = "denoise --model {model} --from"
DECODE = "decode --model {model} --from {step}"
NAMED = {
    "text": TEXT,
    "other text": f"{TEXT} --prompt dog",
    "other negative": f"{TEXT} --negative-prompt dark",
    "image": IMAGE,
    "other image": WIDE,
    "clip": CLIP,
    "other clip": f"{CLIP} --video other",
    "masked clip": MASKED,
    "referenced step": "denoise --model {model} --from {text} --from {reference} --stop-at 1",
    "reference": REFERENCE,
    "plain step": "denoise --model {model} --from {text} --from {clip} --stop-at 1",
    "step": f"{STEP} --stop-at 1",
    "image step": f"{IMAGE_STEP} --stop-at 1",
    "step before a LoRA": f"{STEP} --stop-at 1 --seed 2",
    "step before a text": f"{STEP} --stop-at 1 --seed 3",
    "step before a guidance": f"{STEP} --stop-at 1 --seed 4",
    "other step": f"{STEP} --stop-at 1 --seed 1",
    "long step": f"{STEP} --stop-at 1 --num-frames 9",
    "trimmed step": f"{STEP} --stop-at 1 --trim-first-frames 1",
    "wide step": f"{STEP} --stop-at 1 --width 272",
}


@dataclass(frozen=True)
class Row:
    """The fields in which two entries differ, the command of the first, and the change that makes
    it the second one's: words to add, or "old => new". Of a run its step `step` is compared.
    """

    fields: str
    command: str
    change: str
    kind: str = T2V
    step: int = 0
    apart: bool = False  # whether the second is made in another folder, all of it by its model

    @property
    def stage(self) -> str:
        """The stage of both entries."""
        return self.command.split()[0]

    @property
    def changed(self) -> str:
        """The command of the second entry."""
        old, arrow, new = self.change.partition(" => ")
        if arrow:
            assert old in self.command, self
            return self.command.replace(old, new)
        return f"{self.command} {self.change}"


ROWS = [
    Row("source", FLOAT32, "{checkpoint} => {spaced checkpoint}"),
    Row("source", SHRINK, "{model} => {other vae}"),
    Row("variant", FLOAT32, "{checkpoint} => {checkpoint 720p}", I2V),
    Row("dtype", FLOAT32, "--dtype bfloat16"),
    Row("dtype", FLOAT32, "--dtype float16"),
    Row("quantization", FLOAT32, "--quantize --group-size 32"),
    Row("quantization", PACKED, "--group-size 64"),
    Row("quantization", PACKED, "--bits 8"),
    Row("quantization", PACKED, "--quantize-text-encoder"),
    Row("quantization", SHRINK, "--bits 8"),
    Row("defaults", SHRINK, "{model} => {other fps}"),
    Row("t5", TEXT, "{model} => {other t5_encoder}"),
    Row("tokenizer", TEXT, "{model} => {other tokenizer}"),
    Row("prompt", TEXT, "cat => dog"),
    Row("negative", TEXT, "--negative-prompt dark"),
    Row("negative", TEXT, "--no-negative-prompt"),
    Row("text_len", TEXT, "{model} => {other text_len}"),
    Row("vae", IMAGE, "{model} => {other vae_encoder}", I2V),
    Row("vae", IMAGE, "{model} => {other vae_encoder}", "wan22-ti2v-5b"),
    Row("clip", IMAGE, "{model} => {other clip}", I2V),
    Row("pixels", WIDE, "wide => middle", A14B_I2V),
    Row("pixels", WIDE, "--fit pad", I2V),
    Row("clip_pixels", WIDE, "wide => edge", I2V),
    Row("last_pixels", IMAGE, "--last-image wide.png", A14B_I2V),
    Row("pixels", BOTH, " --image square.png => ", A14B_I2V),
    Row("last_pixels", BOTH, "wide => middle", A14B_I2V),
    Row("last_pixels", BOTH, "--fit pad", FLF2V),
    Row("last_clip_pixels", BOTH, "wide => edge", FLF2V),
    Row("width pixels", IMAGE, "--width 48", I2V),
    Row("height pixels", IMAGE, "--height 48", I2V),
    Row("num_frames", IMAGE, "--num-frames 9", I2V),
    Row("mode vae", f"{IMAGE} --num-frames 1", "{model} => {other task}", A14B_I2V),
    Row("pixels", CLIP, "--video other", VACE),
    Row("pixels", CLIP, "--video other"),
    Row("mask", CLIP, "--mask half.png", VACE),
    Row("mask", MASKED, "half => third"),
    Row("references", CLIP, "--reference square.png", VACE),
    Row("references", REFERENCE, "square => wide", VACE),
    Row("pixels mask known_frames", CLIP, "--extend 1", VACE),
    Row("mode", CLIP, "{model} => {other task}", VACE),
    Row("vae", CLIP, "{model} => {other vae_encoder}", VACE),
    Row("pixels clip_pixels", CONTINUED, "--video other", I2V),
    Row("clip_pixels", f"{CONTINUED} --video wide", "wide => edge", I2V),
    Row("clip", CONTINUED, "{model} => {other clip}", I2V),
    Row("known_frames pixels num_frames", CONTINUED, "--num-frames 9 --extend 5", TI2V),
    Row("width pixels", CLIP, "--width 48", VACE),
    Row("height pixels", CLIP, "--height 48", VACE),
    Row("num_frames pixels", CLIP, "--num-frames 1", VACE),
    Row("noise", STEP, "--seed 1"),
    Row("noise", STEP, "--width 48"),
    Row("noise", STEP, "--height 48"),
    Row("noise", STEP, "--num-frames 9"),
    Row("noise", STEP, "--noise noise.npy"),
    Row("noise", STEP, "--trim-first-frames 1"),
    Row("noise", f"{STEP} --num-frames 9", "--num-frames 5 --trim-first-frames 1"),
    Row("parent", STEP, "--seed 1", step=1),
    Row("expert", STEP, "{model} => {other model}"),
    Row("expert", STEP, "{model} => {other high_noise_model}", A14B),
    Row("expert", STEP, "{model} => {other low_noise_model}", A14B, step=3),
    Row("loras", STEP, "--lora style.safetensors 1"),
    Row("loras", LORA, "style => other"),
    Row("loras", LORA, "safetensors 1 => safetensors 0.5"),
    Row(
        "loras",
        f"{LORA} --lora other.safetensors 1",
        "style.safetensors 1 --lora other => other.safetensors 1 --lora style",
    ),
    Row("loras", STEP, "--lora-high style.safetensors 1", A14B),
    Row("loras", STEP, "--lora-low style.safetensors 1", A14B, step=3),
    Row("loras", f"{BRANCH} {{step before a LoRA}}", "--lora style.safetensors 1", step=1),
    Row("text", STEP, "{text} => {other text}"),
    Row("text", STEP, "{text} => {other negative}"),
    Row("text", f"{STEP} --guide-scale 1", "{text} => {other text}"),
    Row("text", f"{BRANCH} {{step before a text}}", "--from {other text}", step=1),
    Row("text guide_scale", STEP, "--guide-scale 1"),
    Row("image", IMAGE_STEP, "{image} => {other image}", A14B_I2V),
    Row("image", IMAGE_STEP, "{image} => {other image}", I2V),
    Row("video", VIDEO_STEP, "{clip} => {other clip}", VACE),
    Row("video", VIDEO_STEP, "{clip} => {other clip}"),
    Row("parent", VIDEO_STEP, "{clip} => {other clip}", step=1),
    Row("parent video", MASKED_STEP, "{masked clip} => {clip}", step=1),
    Row("timestep sigma sigma_next", VIDEO_STEP, "--strength 0.5"),
    Row("context_scale", VIDEO_STEP, "--context-scale 0.5", VACE),
    Row("guide_scale", STEP, "--guide-scale 4.5"),
    Row("guide_scale", f"{BRANCH} {{step before a guidance}}", "--guide-scale 4.5", step=1),
    Row("guide_scale", PAIR, "--guide-scale 3,5", A14B),
    Row("guide_scale", PAIR, "--guide-scale 2,4", A14B, step=3),
    Row("solver", f"{GRID} 1000,750,500 --scheduler dpm++", "dpm++ => euler"),
    Row("solver sigma_next", f"{GRID} 1000,750,500 --scheduler dpm++", ",500 => ", step=1),
    Row("solver timestep", f"{GRID} 990.5,750 --scheduler dpm++", "dpm++ => euler"),
    Row("sigma", f"{GRID} 990.5,750", "990.5 => 990.7"),
    Row("sigma_next", f"{GRID} 990,750", "750 => 700"),
    Row("timestep sigma sigma_next", f"{GRID} 900,750", "--shift 3"),
    Row("step_cache", f"{START} --steps 10", "--step-cache 0.05"),
    Row("step_cache", CACHED, "0.05 => 0.04"),
    Row("step_cache sigma_next", CACHED, "--steps 10 => --steps 11"),
    Row("solver step_noise", f"{GRID} 1000,750,500 --scheduler euler", "euler => lcm"),
    Row("noise step_noise", LCM, "--seed 1"),
    Row("parent step_noise", LCM, "--seed 1", step=1),
    Row("nag", STEP, "--nag 11"),
    Row("nag text", ALONE, "--nag 11"),
    Row("nag", NAG, "--nag 5"),
    Row("nag", NAG, "--nag-tau 3"),
    Row("nag", NAG, "--nag-alpha 0.5"),
    Row("text", NAG, "{text} => {other negative}"),
    Row("vae", DECODE, "{model} => {other vae}", apart=True),
    Row("step", DECODE, "{step} => {other step}"),
    Row("decoder vae", DECODE, "--vae-tiny tiny.safetensors"),
    Row("vae", f"{DECODE} --vae-tiny tiny.safetensors", "tiny.s => other-tiny.s"),
    Row("tiling", "decode --model {model} --from {wide step}", "--tiling spatial"),
    Row("trim_first_frames step", "decode --model {model} --from {long step}", "long => trimmed"),
    Row(
        "reference_frames step",
        "decode --model {model} --from {referenced step}",
        "referenced => plain",
        VACE,
    ),
]
