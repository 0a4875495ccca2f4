"""The Hub's cache on this machine: what stands for a checkpoint, a model or a LoRA, and which files
of a repository are read.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import store_snapshot
from tests.workshop import Place
from wanpipe.checkpoints.hub.cache import (
    Repository,
    hub_cache,
    locate,
    locate_file,
    parse_repository,
    repository_of,
)
from wanpipe.checkpoints.hub.selection import choose_files, match_files
from wanpipe.errors import CheckpointError

OLD, NEW = "1" * 40, "2" * 40
TINY = "Wan-AI/Tiny"
ENVIRONMENTS = [
    {},
    {"HF_HOME": "/data/hf"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "$HOME/$USER/hf"},
    {"HF_HOME": ""},
    {"HF_HUB_CACHE": "/data/hub", "HF_HOME": "/data/hf"},
    {"HUGGINGFACE_HUB_CACHE": "/old/hub", "HF_HOME": "/data/hf"},
    {"HUGGINGFACE_HUB_CACHE": "/old/hub", "HF_HUB_CACHE": "~/hub"},
    {"XDG_CACHE_HOME": "/xdg"},
    {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/data/hf"},
    {"HF_HUB_CACHE": "hub"},
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_cache_is_where_huggingface_hub_has_it() -> None:
    script = """
import importlib, json, os, sys
from huggingface_hub import constants
from wanpipe.checkpoints.hub.cache import hub_cache
plain = dict(os.environ)
for added in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update({**plain, **added})
    importlib.reload(constants)
    print(json.dumps([constants.HF_HUB_CACHE, str(hub_cache())]))
"""
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    plain = {name: text for name, text in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(ENVIRONMENTS)],
        env={**plain, "HOME": "/home/anna", "USER": "anna"},
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({ours for _, ours in pairs}) > 6
    assert [theirs for theirs, _ in pairs] == [ours for _, ours in pairs]


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B", Repository("Wan-AI/Wan2.1-T2V-1.3B")),
        ("a/b@v1.0", Repository("a/b", "v1.0")),
        ("a/b@refs/pr/3", Repository("a/b", "refs/pr/3")),
        ("a/b@../../x", None),
        ("a/b@", None),
        ("Wan2.1-T2V-1.3B", None),
        ("./Wan2.1-T2V-1.3B", None),
        ("../Wan2.1-T2V-1.3B", None),
        ("/models/wan", None),
        ("~/wan", None),
        ("a/b/c", None),
        ("a/b--c", None),
        ("a/b..c", None),
        ("a b/c", None),
        ("a/ü", None),
        ("a/b\n", None),
    ],
)
def test_what_is_a_repository(text: str, repository: Repository | None) -> None:
    assert parse_repository(text) == repository


def test_a_directory_of_that_name_wins(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    snapshot = store_snapshot(cache, tmp_path / "source", TINY, NEW)
    monkeypatch.chdir(tmp_path)
    assert locate(Path(TINY)) == snapshot
    assert locate_file(Path(f"{TINY}:file")) == snapshot / "file"
    (tmp_path / TINY).mkdir(parents=True)
    assert locate(Path(TINY)) == Path(TINY)
    (tmp_path / f"{TINY}:file").write_text("y")
    assert locate_file(Path(f"{TINY}:file")) == Path(f"{TINY}:file")


def test_a_revision_is_a_ref_or_a_commit(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    old = store_snapshot(cache, tmp_path / "source", TINY, OLD)
    new = store_snapshot(cache, tmp_path / "source", TINY, NEW)
    folder = Repository(TINY).folder
    (folder / "refs" / "pr").mkdir()
    (folder / "refs" / "pr" / "3").write_text(OLD)
    assert locate(Path(TINY)) == new
    assert locate(Path(f"{TINY}@{OLD}")) == locate(Path(f"{TINY}@pr/3")) == old
    assert repository_of(new / "sub" / "file") == Repository(TINY)
    assert repository_of(old) == Repository(TINY, OLD)
    assert repository_of(tmp_path) is None
    with pytest.raises(CheckpointError, match="run `wanpipe download Wan-AI/Tiny --revision v2`"):
        locate(Path(f"{TINY}@v2"))


@pytest.mark.parametrize("text", ["../../../secret", "x" * 10**6, "\0", "", "main"])
def test_a_ref_that_is_no_commit_leads_nowhere(text: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    store_snapshot(cache, tmp_path / "source", TINY, NEW)
    Repository(TINY).ref.write_text(text)
    with pytest.raises(CheckpointError, match="neither a directory nor in the Hugging Face cache"):
        locate(Path(TINY))


@pytest.mark.parametrize("file", ["../../../x", "/etc/passwd", ""])
def test_a_file_of_a_repository_is_inside_it(file: str, cache: Path) -> None:
    assert locate_file(Path(f"{TINY}:{file}")) == Path(f"{TINY}:{file}")


def test_an_incomplete_snapshot_tells_what_completes_it(
    cache: Path, checkpoints: Path, tmp_path: Path
) -> None:
    snapshot = store_snapshot(cache, checkpoints / "wan21-t2v", TINY, NEW)
    (tmp_path / "here").mkdir()
    here = Place(tmp_path / "here", tmp_path)
    vae = snapshot / "Wan2.1_VAE.pth"
    blob = vae.resolve()
    blob.rename(tmp_path / "blob")  # leaves a link that leads nowhere
    says = f"lacks Wan2.1_VAE.pth; run `wanpipe download {TINY}`"
    here.refuse("convert", "--checkpoint-dir", TINY, code=1, says=says)
    Repository(TINY).ref.write_text(OLD)
    says = f"lacks Wan2.1_VAE.pth; run `wanpipe download {TINY} --revision {NEW}`"
    here.refuse("convert", "--checkpoint-dir", f"{TINY}@{NEW}", code=1, says=says)
    (tmp_path / "blob").rename(blob)
    assert here.do("convert", "--checkpoint-dir", snapshot).computed()
    words = ("run", "--checkpoint-dir", "Wan-AI/Other", "--prompt", "x")
    says = f"nor in the Hugging Face cache at {hub_cache()}; to download it, run `wanpipe download "
    here.refuse(*words, code=1, says=says)


T5, VAE, CLIP = (
    "models_t5_umt5-xxl-enc-bf16.pth",
    "Wan2.1_VAE.pth",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
)
BESIDE = [".gitattributes", "LICENSE.txt", "assets/logo.png", "examples/i2v_input.JPG"]
TOKENIZER = [
    f"google/umt5-xxl/{name}"
    for name in ("special_tokens_map.json", "spiece.model", "tokenizer_config.json")
]
DIT = "diffusion_pytorch_model"


def shards(stem: str, count: int) -> list[str]:
    """The files of a network in shards, with their index."""
    files = [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [f"{stem}.safetensors.index.json", *files]


OFFICIAL = ["README.md", "google/umt5-xxl/tokenizer.json", T5, VAE]
PIPELINE = [
    "README.md",
    "model_index.json",
    "tokenizer/tokenizer.json",
    "transformer/config.json",
    f"vae/{DIT}.safetensors",
    *shards("text_encoder/model", 5),
    *shards(f"transformer/{DIT}", 2),
]
MODEL = ["README.md", "config.json", "model.safetensors", "t5_encoder.safetensors"]


@pytest.mark.parametrize(
    ("read", "beside"),
    [
        ([*OFFICIAL, "config.json", f"{DIT}.safetensors"], [f"{DIT}.fp8.safetensors"]),
        (
            [*OFFICIAL, "config.json", CLIP, *shards(DIT, 7)],
            ["xlm-roberta-large/tokenizer.json", "Wan2.1_VAE.safetensors"],
        ),
        (
            [
                *OFFICIAL,
                *(f"{one}_noise_model/config.json" for one in ("high", "low")),
                *shards(f"high_noise_model/{DIT}", 6),
                *shards(f"low_noise_model/{DIT}", 6),
            ],
            ["nohup.out"],
        ),
        (
            PIPELINE,
            [
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "tokenizer/spiece.model",
                "vae/config.json",
                f"transformer/{DIT}.fp16.safetensors",
                "transformer/diffusion_pytorch_model.bin",
            ],
        ),
        (
            [
                *PIPELINE,
                "image_encoder/model.safetensors",
                "transformer_2/config.json",
                *shards(f"transformer_2/{DIT}", 12),
            ],
            ["image_encoder/config.json", "image_processor/preprocessor_config.json"],
        ),
        ([*MODEL, "tokenizer.json", "vae.safetensors", "vae_encoder.safetensors"], ["zarr.json"]),
    ],
)
def test_the_files_that_are_read_are_chosen(read: list[str], beside: list[str]) -> None:
    assert choose_files([*read, *beside, *BESIDE, *TOKENIZER]) == sorted(read)


def test_one_file_in_place_of_shards_is_enough() -> None:
    index = f"{DIT}.safetensors.index.json"
    names = [*OFFICIAL, "config.json", f"{DIT}.safetensors", index]
    assert choose_files(names) == sorted(names)
    whole = [*OFFICIAL, "config.json", *shards(DIT, 2)[1:]]
    assert choose_files(whole) == sorted(whole)


def test_loose_files_are_not_chosen_but_named() -> None:
    names = ["Wan2_1-T2V-1_3B_bf16.safetensors", "T2V/lora/rank64.safetensors", "README.md"]
    assert choose_files(names) is None
    assert match_files(names, ["T2V/"]) == match_files(names, ["*rank64*"]) == [names[1]]
    assert match_files(names, ["*.safetensors"]) == sorted(names[:2])
    assert match_files(names, ["t2v/"]) == []


@pytest.mark.parametrize("layout", ["wan21-t2v", "wan21-i2v", "wan22-t2v-a14b", "wan22-ti2v-5b"])
def test_what_is_chosen_is_what_a_conversion_reads(layout: str, checkpoints: Path) -> None:
    from wanpipe.checkpoints.detect import detect

    folder = checkpoints / layout
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    chosen = choose_files([*names, *BESIDE])
    read = set(detect(folder).sources)
    assert chosen is not None
    assert set(chosen) - read <= {name for name in names if name.endswith(".index.json")}
    assert read <= set(chosen)
