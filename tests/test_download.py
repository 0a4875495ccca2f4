"""download: files of the Hub, once, from a Hub on this machine."""

import builtins
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stages import download
from tests.commands import Result, wanpipe
from tests.hub_server import LARGE, TOKEN, Hub, identity, serve
from tests.workshop import Place, inside
from wanpipe.checkpoints.hub import transfer
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report

TINY = "Wan-AI/Tiny"
OTHERS = ("assets/logo.png", "examples/film.safetensors", "Wan2.1_VAE.safetensors")
HF = ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with no repository, and an empty cache of it; no try waits."""
    with serve() as hub:
        for name in HF:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield hub


@pytest.fixture
def tiny(hub: Hub, checkpoints: Path, tmp_path: Path) -> Path:
    """The folder of a repository with the tiny Wan2.1 T2V, and files beside it."""
    folder = shutil.copytree(checkpoints / "wan21-t2v", tmp_path / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode() * 99)
    hub.folders[TINY] = folder
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """An empty folder, without a model."""
    (tmp_path / "here").mkdir()
    return Place(tmp_path / "here", tmp_path / "no model")


def get(here: Place, *words: object) -> Path:
    """Download what must succeed; the folder that is printed."""
    return here.made("download", *words)


def names(folder: Path) -> set[str]:
    """The files below a folder, without hidden ones."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.parts[0][0] != "."}


def wanted(folder: Path) -> set[str]:
    """The files of a repository that wanpipe reads."""
    return names(folder) - set(OTHERS)


def large(folder: Path) -> int:
    """The bytes of the large files that wanpipe reads."""
    paths = (folder / name for name in wanted(folder))
    return sum(path.stat().st_size for path in paths if path.suffix in LARGE)


def failed(result: Result, says: str) -> None:
    """Check that a command failed with one line after those of its progress."""
    assert result.code == 1, result.stderr
    assert not result.paths
    last = result.stderr.splitlines()[-1]
    assert last.startswith("wanpipe: error: "), result.stderr
    assert says in last, last
    assert "Traceback" not in result.stderr


def test_what_wanpipe_reads_arrives_once(hub: Hub, tiny: Path, here: Place, tmp_path: Path) -> None:
    snapshot = get(here, TINY)
    assert snapshot == tmp_path / "hf/hub/models--Wan-AI--Tiny/snapshots" / hub.commit(TINY)
    assert names(snapshot) == wanted(tiny)
    assert all((snapshot / name).is_symlink() for name in names(snapshot))
    for name in names(snapshot):
        assert (snapshot / name).read_bytes() == (tiny / name).read_bytes()
    assert hub.sent == large(tiny)
    assert get(here, TINY) == snapshot
    assert hub.sent == large(tiny)
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_downloaded_checkpoint_makes_a_video_by_its_name(
    hub: Hub, tiny: Path, here: Place
) -> None:
    snapshot = get(here, TINY)
    hub.requests.clear()
    small = ("--width", 32, "--height", 32, "--num-frames", 5, "--steps", 2)
    made = here.do("run", "--checkpoint-dir", TINY, "--prompt", "a cat", *small)
    assert (here.root / made.paths[0]).stat().st_size
    assert not hub.requests  # no command but download uses the network
    for same in (tiny, snapshot, f"{TINY}@{hub.commit(TINY)}"):
        assert not here.do("convert", "--checkpoint-dir", same).computed()


def test_a_converted_model_is_shared(hub: Hub, tiny: Path, here: Place, tmp_path: Path) -> None:
    get(here, TINY)
    made = here.made("convert", "--checkpoint-dir", TINY, "--output-dir", "model")
    (made / "notes.safetensors").write_bytes(b"of the user")
    hub.folders["someone/tiny-mlx"] = made
    there = Place(tmp_path / "there", tmp_path)
    there.root.mkdir()
    missing = inside("encode-text", "--model", "someone/tiny-mlx", "--prompt", "x", cwd=there.root)
    failed(missing, "run `wanpipe download someone/tiny-mlx`")
    snapshot = get(there, "someone/tiny-mlx")
    assert names(snapshot) == names(made) - {"notes.safetensors"}
    assert "base_model: Wan-AI/Tiny" in (snapshot / "README.md").read_text()
    text = there.made("encode-text", "--model", "someone/tiny-mlx", "--prompt", "x")
    assert here.made("encode-text", "--model", "model", "--prompt", "x").name == text.name


def test_a_cut_connection_costs_no_byte_twice(hub: Hub, tiny: Path, here: Place) -> None:
    hub.cut = 30_000
    assert names(get(here, TINY)) == wanted(tiny)
    assert hub.sent == large(tiny)


def test_a_download_that_fails_goes_on_where_it_stopped(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    hub.budget = large(tiny) // 2
    failed(inside("download", TINY, "--quiet", cwd=here.root), "run the same command again")
    assert not (tmp_path / "hf/hub/models--Wan-AI--Tiny/refs/main").exists()
    failed(
        inside("convert", "--checkpoint-dir", TINY, cwd=here.root), f"run `wanpipe download {TINY}`"
    )
    hub.budget = 1 << 62
    assert names(get(here, TINY)) == wanted(tiny)
    assert hub.sent == large(tiny)


def test_a_signal_ends_a_download_that_goes_on_later(
    hub: Hub, tiny: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        if hub.sent > 60_000:
            raise interrupt.Interrupted(signal.SIGINT)

    hub.cut = 20_000
    monkeypatch.setattr(transfer, "PAUSES", (0.05,))
    monkeypatch.setattr(transfer.interrupt, "check", check)
    stopped = inside("download", TINY, cwd=here.root)
    assert stopped.code == 128 + signal.SIGINT
    assert "interrupted" in stopped.stderr.splitlines()[-1]
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(here.root.parent / "hf"))
    hub.cut = 1 << 62
    assert names(get(here, TINY)) == wanted(tiny)
    assert hub.sent <= large(tiny) + 4 * 20_000  # what was on the way when it ended


def test_a_server_that_sends_only_whole_files_is_enough(hub: Hub, tiny: Path, here: Place) -> None:
    hub.budget = large(tiny) // 2
    failed(inside("download", TINY, "--quiet", cwd=here.root), "")
    hub.budget, hub.whole = 1 << 62, True
    snapshot = get(here, TINY)
    for name in names(snapshot):
        assert (snapshot / name).read_bytes() == (tiny / name).read_bytes()


def test_damaged_content_is_noticed_and_comes_again(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    hub.damaged = True
    failed(inside("download", TINY, cwd=here.root), "arrived with other content than")
    hub.damaged = False
    snapshot = get(here, TINY)
    for name in names(snapshot):
        assert (snapshot / name).read_bytes() == (tiny / name).read_bytes()
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_damaged_part_is_left_for_a_new_one(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    vae = tiny / "Wan2.1_VAE.pth"
    part = tmp_path / "hf/hub/models--Wan-AI--Tiny/blobs" / f"{identity(vae)}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))  # as a power loss leaves it
    t5 = tiny / "models_t5_umt5-xxl-enc-bf16.pth"
    shutil.copyfile(t5, part.with_name(f"{identity(t5)}.incomplete"))  # whole, not in its place
    made = here.do("download", TINY)
    assert not [path for _, path, _, _ in hub.requests if path == f"blob/{TINY}/{t5.name}"]
    assert not list(part.parent.glob("*.incomplete"))
    says = "Wan2.1_VAE.pth: what was there of it is damaged; starting again"
    assert [event["text"] for event in made.events if event["event"] == "remark"] == [says]
    assert (Path(made.paths[0]) / vae.name).read_bytes() == vae.read_bytes()


def test_a_cut_blob_of_the_cache_comes_again(hub: Hub, tiny: Path, here: Place) -> None:
    vae = get(here, TINY) / "Wan2.1_VAE.pth"
    whole = vae.read_bytes()
    os.truncate(vae, 99)
    get(here, TINY)
    assert vae.read_bytes() == whole


def test_a_gated_repository_asks_for_a_token(
    hub: Hub, tiny: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(TINY)
    says = f"{TINY} is gated, and you have no access yet; ask for it at {hub.url}/{TINY}, log in"
    failed(inside("download", TINY, cwd=here.root), says)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    failed(inside("download", TINY, cwd=here.root), says)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert names(get(here, TINY)) == wanted(tiny)
    tokens = {token for _, path, _, token in hub.requests if path.startswith("blob/")}
    assert tokens == {""}  # the token stays with the Hub


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("Wan-AI/Nothing",), "has no repository Wan-AI/Nothing, or it is private; check the name"),
        ((TINY, "--revision", "v9"), f"{TINY} has no revision v9; see "),
        ((f"{TINY}@v9",), f"{TINY} has no revision v9; see "),
        ((TINY, "--include", "*.gguf"), "has no file that matches *.gguf"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(
    words: tuple[str, ...], says: str, hub: Hub, tiny: Path, here: Place
) -> None:
    here.refuse("download", *words, code=1, says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("Wan2.1",), "a repository must be ORG/NAME, got Wan2.1"),
        (("../secret/x",), "a repository must be ORG/NAME"),
        ((TINY, "--revision", "../../x"), "a revision must be a branch, a tag or a commit"),
        ((f"{TINY}@v1", "--revision", "v2"), "names a revision already"),
    ],
)
def test_words_that_cannot_be_are_refused(
    words: tuple[str, ...], says: str, hub: Hub, here: Place
) -> None:
    here.refuse("download", *words, code=2, says=says)
    assert not hub.requests


def test_a_branch_is_kept_under_its_name(hub: Hub, tiny: Path, here: Place) -> None:
    hub.branches["fp8/test"] = hub.commit(TINY)
    snapshot = get(here, TINY, "--revision", "fp8/test")
    here.refuse("convert", "--checkpoint-dir", TINY, code=1, says=f"run `wanpipe download {TINY}`")
    says = f"run `wanpipe download {TINY} --revision v2`"
    here.refuse("convert", "--checkpoint-dir", f"{TINY}@v2", code=1, says=says)
    assert here.do("convert", "--checkpoint-dir", f"{TINY}@fp8/test").computed()
    assert not here.do("convert", "--checkpoint-dir", snapshot).computed()


def test_without_the_network_one_line_says_so(
    hub: Hub, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = wanpipe("download", TINY, cwd=here.root, env={"HF_HUB_OFFLINE": "1"})
    assert offline.code == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr.splitlines()[-1]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    here.refuse("download", TINY, code=1, says="cannot be reached (")


@pytest.mark.parametrize("status", [503, 404])
def test_a_hub_that_refuses_is_told_without_a_signature(
    status: int, hub: Hub, tiny: Path, here: Place
) -> None:
    hub.status = status
    result = inside("download", TINY, cwd=here.root)
    failed(result, f"{hub.url} does not send {TINY} (status {status}); run the same command again")
    assert "secret" not in result.stderr


def test_a_full_disk_is_told_before_anything_arrives(
    hub: Hub, tiny: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(here.root)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    here.refuse("download", TINY, code=1, says="its disk has 10000 free; make room")
    assert not hub.sent


def test_a_dry_run_lists_the_files_and_gets_none(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    plan = here.do("download", TINY, "--dry-run")
    rows = {row["name"]: row["bytes"] for row in plan.events if row["event"] == "file"}
    assert rows == {name: (tiny / name).stat().st_size for name in wanted(tiny)}
    assert plan.events[-1]["missing"] == sum(rows.values())
    assert not (tmp_path / "hf").exists()
    assert get(here, TINY) == Path(plan.paths[0])


def test_files_of_two_repositories_make_a_folder(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    single = tmp_path / "single"
    single.mkdir()
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        shutil.copyfile(tiny / name, single / name)
    for name in ("a.safetensors", "b.safetensors"):
        (single / "other").mkdir(exist_ok=True)
        (single / "other" / name).write_bytes(b"another model")
    (single / "diffusion_pytorch_model.safetensors").rename(single / "wan.safetensors")
    hub.folders["Kijai/Tiny"] = single
    says = "but holds files to choose from (other/a.safetensors, other/b.safetensors, wan.saf"
    here.refuse("download", "Kijai/Tiny", code=1, says=says)
    chosen = ("--include", "wan.safetensors", "--include", "config.json")
    get(here, "Kijai/Tiny", *chosen, "--local-dir", "mixed")
    chosen = ("--include", "*.pth", "--include", "google/")
    folder = get(here, TINY, *chosen, "--local-dir", "mixed")
    assert names(folder) == wanted(tiny) - {"diffusion_pytorch_model.safetensors", "README.md"} | {
        "wan.safetensors"
    }
    assert here.do("convert", "--checkpoint-dir", "mixed").computed()
    sent = hub.sent
    get(here, TINY, *chosen, "--local-dir", "mixed")
    assert hub.sent == sent


def test_a_folder_gets_its_files_from_the_cache(hub: Hub, tiny: Path, here: Place) -> None:
    get(here, TINY)
    folder = get(here, TINY, "--local-dir", "copy")
    assert names(folder) == wanted(tiny)
    assert hub.sent == large(tiny)


@pytest.mark.parametrize(
    "row", [{"path": "../../evil.pth"}, {"path": "/evil"}, {"lfs": {"oid": "../../evil"}}]
)
def test_a_listing_that_leads_elsewhere_is_refused(
    row: dict[str, Any], hub: Hub, tiny: Path, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lfs = {"oid": "0" * 64, "size": 9, "pointerSize": 134, **row.get("lfs", {})}
    evil = {"type": "file", "path": "x.pth", "size": 9, "oid": "0" * 40, **row, "lfs": lfs}
    monkeypatch.setattr(Hub, "tree", lambda *_: [evil])
    here.refuse("download", TINY, "--include", "*", code=1, says="lists a file that cannot be")


def test_a_download_waits_for_that_of_another_process(
    hub: Hub, tiny: Path, here: Place, tmp_path: Path
) -> None:
    locks = tmp_path / "hf/hub/.locks/models--Wan-AI--Tiny"
    locks.mkdir(parents=True)
    lock = FileLock(locks / f"{identity(tiny / 'Wan2.1_VAE.pth')}.lock", thread_local=False)
    lock.acquire()
    told: list[str] = []

    class Releasing(Report):
        """Releases the lock when it is told that a process waits for it."""

        def remark(self, text: str) -> None:
            told.append(text)
            lock.release()

    snapshot = download.run(download.Params(repository=TINY), Releasing())
    assert told == ["Wan2.1_VAE.pth: waiting for another process that downloads it"]
    assert names(snapshot) == wanted(tiny)


def test_without_huggingface_hub_one_line_says_what_to_install(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    here.refuse("download", TINY, code=2, says="run `pip install 'wanpipe[hub]'`")
