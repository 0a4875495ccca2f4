"""Writes the training set: rows to draw, captions as token ids, and the tokenizer.

    python -m bench.train_demo.data --out data.npz --tokenizer tokenizer.json

Takes half a minute on a CPU. The training programs read the file.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wanpipe.demo import world
from wanpipe.demo.vocabulary import WORDS

CLIPS, CAPTIONS, TOKENS = 32768, 4, 64  # clips, captions per clip, tokens per caption
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
HIDDEN = (("shape", "color"), ("shape", "color"), ("color",), ("shape",))  # words left out
SYNONYMS = ("gray", "scene", "clip", "film", "showing", "shape", "moving", "growing", "spinning")


def vocabulary() -> list[list]:
    """List the pieces: special tokens, 256 bytes, the words of the captions, single letters."""
    words = set(SYNONYMS) | {"a", "an", "the", "video", "of", "that", "there", "is"}
    for values in WORDS.values():
        for phrases in values.values():
            words |= {w for p in phrases for w in re.findall(r"[a-z]+", p)}
    words |= {w.capitalize() for w in words}
    pieces: list[list] = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    pieces += [[f"<0x{i:02X}>", 0.0] for i in range(256)]
    pieces += [["▁", -4.0]]
    pieces += [["▁" + w, -6.0] for w in sorted(words)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-'!?:;\"()"
    return pieces + [[letter, -5.0 if letter in ".,-" else -8.0] for letter in letters]


def write_tokenizer(path: Path) -> None:
    """Write tokenizer.json: like the official one, Unigram with byte fallback and `</s>`."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    names = ("<pad>", "</s>", "<unk>")
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    parts = {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": n, **special, "special": True} for i, n in enumerate(names)
        ],
        # the official file has the same NFKC map as a table of 300 kB
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": spaces,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [parts["A"], end],
            "pair": [parts["A"], end, parts["B"], end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": spaces,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary(), "byte_fallback": True},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1))


def encode(path: Path, texts: list[str]) -> np.ndarray:
    """Tokenize texts to ids (N, TOKENS), padded with 0 and truncated to end in `</s>`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ids = np.zeros((len(texts), TOKENS), np.int16)
    for i, made in enumerate(tokenizer.encode_batch(texts)):
        kept = made.ids if len(made.ids) <= TOKENS else [*made.ids[: TOKENS - 1], 1]
        ids[i, : len(kept)] = kept
    return ids


def prepare(out: Path, tokenizer: Path, clips: int, seed: int = 0) -> None:
    """Sample the training scenes; write their rows, their ids and the ids of the test prompts."""
    rng = np.random.default_rng(seed)
    scenes = world.sample_scenes(rng, clips)
    rows = np.stack([world.sample_row(s, rng) for s in scenes])
    texts = [world.caption(world.omit_words(s, rng), rng) for s in scenes for _ in range(CAPTIONS)]
    test = [text for text, _ in world.test_prompts()]
    np.savez_compressed(
        out,
        rows=rows,
        ids=encode(tokenizer, texts).reshape(clips, CAPTIONS, TOKENS),
        dropped=encode(tokenizer, ["", NEGATIVE]),
        test=encode(tokenizer, test),
        vague=encode(tokenizer, vague(scenes)).reshape(clips, len(HIDDEN), TOKENS),
    )


def vague(scenes: list[world.Scene], seed: int = 1) -> list[str]:
    """Caption every scene once for each of HIDDEN, without these kinds of word."""
    rng = np.random.default_rng(seed)
    return [
        world.caption(world.omit_words(s, rng), rng, hide=hide) for s in scenes for hide in HIDDEN
    ]


class Painter:
    """Draws rows on the device, with values from -1 to 1."""

    def __init__(self, device: torch.device):
        self.constants = tuple(torch.from_numpy(c).to(device) for c in world.paint_constants())

    def __call__(self, rows: Tensor, times: Tensor | None = None) -> Tensor:
        shapes, usual, steps = self.constants
        constants = (shapes, usual if times is None else times, steps)
        clips = world.paint(rows, constants, torch).clamp(0, 255).round()
        return clips / 127.5 - 1  # (B, T, Y, X, 3)


def main() -> None:
    """Write the tokenizer and the training set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=CLIPS)
    args = parser.parse_args()
    write_tokenizer(args.tokenizer)
    prepare(args.out, args.tokenizer, args.clips)


if __name__ == "__main__":
    main()
