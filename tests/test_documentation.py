"""The README and the documentation: every block runs as written, every link leads somewhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.offline import loads
from tests.hub_server import serve
from tests.pages import ROOT, SHELL, Block, BlockError, Reader, blocks, pages, publish, stock
from tests.stand_ins import CHECKPOINTS, small
from tests.test_imports import FLOORS

COMMAND = re.compile(r" {4,}(?:\$ |>>> |wanpipe |make |pip |uv |hf |import |from \w+ import )")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<address>[^)\s]+)[^)]*\)")
FILE = re.compile(r"`((?:bench|docs|stages|tests|wanpipe)/[\w./-]+)`")
NAMES = [path.relative_to(ROOT).as_posix() for path in pages()]
LONG = {  # pages whose blocks take many seconds; README.md is tried for every change
    f"docs/{name}.md"
    for name in (
        "how-the-cache-works",
        "index",
        "on-a-mac",
        "tasks/a-shared-cache",
        "tasks/change-a-video",
        "tasks/a-gallery",
        "tasks/community-files",
        "tasks/continue-a-video",
        "tasks/control-and-inpainting",
        "tasks/distilled-models",
        "tasks/image-to-video",
        "tasks/make-a-video-again",
        "tasks/many-seeds-many-prompts",
        "tasks/models",
        "tasks/seeds-and-drafts",
        "tasks/several-devices",
        "tasks/text-to-video",
        "tasks/two-processes",
    )
}
RUN = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in NAMES]


def page(tmp_path: Path, text: str) -> list[Block]:
    """The blocks of a page with this text."""
    path = tmp_path / "page.md"
    path.write_text(text)
    return list(blocks(path))


@pytest.fixture(scope="session")
def shelf(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all checkpoints that pages name; read-only by agreement."""
    folder = tmp_path_factory.mktemp("shelf")
    stock(folder, checkpoints)
    return folder


@pytest.fixture(scope="session")
def hub(shelf: Path) -> Iterator[str]:
    """The URL of a Hub with these checkpoints, and LoRAs."""
    with serve() as hub:
        hub.folders = {f"Wan-AI/{name}": shelf / name for name in CHECKPOINTS}
        hub.uploads = shelf / "uploads"
        publish(shelf)
        yield hub.url


@pytest.fixture
def reader(tmp_path: Path, shelf: Path, hub: str) -> Reader:
    return Reader(tmp_path, shelf, hub)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_every_block_runs_as_written(name: str, reader: Reader) -> None:
    for block in blocks(ROOT / name):
        reader.run(block)


def test_the_long_pages_exist() -> None:
    assert set(NAMES) >= LONG


@pytest.mark.parametrize("name", NAMES)
def test_every_block_has_a_known_language(name: str) -> None:
    list(blocks(ROOT / name))  # raises BlockError


@pytest.mark.parametrize("name", NAMES)
def test_no_command_stands_outside_a_fence(name: str) -> None:
    text, inside, loose = (ROOT / name).read_text("utf-8"), False, []
    for line in text.splitlines():
        inside ^= line.lstrip().startswith("```")
        if not inside and COMMAND.match(line):
            loose.append(line)
    assert loose == []


@pytest.mark.parametrize("name", NAMES)
def test_no_block_that_runs_has_a_placeholder(name: str) -> None:
    run = [block for block in blocks(ROOT / name) if block.language in (*SHELL, "python")]
    found = [word for block in run for word in re.findall(r"<[a-z][\w-]*>|…", block.text)]
    assert found == []


def test_every_link_of_the_readme_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    addresses = [found["address"].split("#")[0] for found in LINK.finditer(text)]
    local = [one for one in addresses if one and not one.startswith(("http:", "https:", "mailto:"))]
    assert [one for one in local if not (ROOT / one).exists()] == []


def test_every_file_that_a_text_names_exists() -> None:
    texts = [*pages(), *(ROOT / "bench").glob("*.md"), ROOT / "CHANGELOG.md"]
    named = {name for path in texts for name in FILE.findall(path.read_text("utf-8"))}
    assert len(named) > 40
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_every_picture_is_shown_and_small() -> None:
    text = "\n".join(path.read_text("utf-8") for path in pages())
    shown = {Path(found["address"]).name for found in LINK.finditer(text)}
    pictures = [path for path in (ROOT / "docs" / "images").iterdir() if path.name != "icon.svg"]
    assert {path.name for path in pictures} - shown == set()
    assert {path.name for path in pictures if path.stat().st_size > 150_000} == set()


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = re.findall(r"^ +- [^:]+: ([\w/-]+\.md)$", site, re.MULTILINE)
    every = [path.relative_to(ROOT / "docs").as_posix() for path in pages()[1:]]
    assert sorted(named) == sorted(every)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(loads(tmp_path)) == []
    commands = (tmp_path / "command-reference.html").read_text("utf-8")
    assert "--keep-steps" in commands
    assert 'id="cache-export"' in commands


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<img src="http://example.org/x.png">',
        "<style>@font-face { src: url('https://example.org/x.woff') }</style>",
    ],
)
def test_what_a_page_loads_from_outside_is_noticed(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f'<a href="https://example.org">a link</a>{text}')
    assert len(list(loads(tmp_path))) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```bash\nfalse\necho after\n```\n", "page.md:2: exit code 1"),
        ("```sh\nwanpipe denoise --nonsense\n```\n", "No such option"),
        ("```sh\nfalse | cat\n```\n", "exit code 1"),
        ("```sh\necho $absent\n```\n", "unbound variable"),
        ("1. x\n\n    ```bash\n    exit 3\n    ```\n", "page.md:4: exit code 3"),
        ("```console\n$ echo one\ntwo\n```\n", "echo one\nprinted\none"),
        ("```console\necho one\n```\n", "output without a command"),
        ("```python\nx = 1\nraise ValueError(x)\n```\n", "page.md:2: ValueError: 1"),
    ],
)
def test_a_block_that_fails_fails(text: str, says: str, reader: Reader, tmp_path: Path) -> None:
    [block] = page(tmp_path, text)
    with pytest.raises(BlockError, match=re.escape(says)):
        reader.run(block)


@pytest.mark.parametrize("text", ["```ruby\nputs 1\n```\n", "```\nls\n```\n", "```bash\nls\n"])
def test_a_block_that_would_be_skipped_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(BlockError):
        page(tmp_path, text)


def test_blocks_share_variables_folder_and_namespace(reader: Reader, tmp_path: Path) -> None:
    text = """
```bash
mkdir sub && cd sub
text="a b"
```
```console
$ echo "$text in $(basename "$PWD")"
a b ... sub
```
```python
x = 1
```
```python
open("x.txt", "w").write(str(x))
```
```text
this is not run
```
"""
    for block in page(tmp_path, text):
        reader.run(block)
    assert (reader.folder / "x.txt").read_text() == "1"


def test_sizes_of_real_models_become_small_and_nothing_else() -> None:
    words = ["run", "--width", "832", "--height", "32", "--steps", "8", "--prompt", "832"]
    assert small(words) == ["run", "--width", "32", *words[3:]]


def literals() -> set[str]:
    """Every text in the source, with … in place of values."""
    found = set()
    for path in [path for top in ("stages", "wanpipe") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_every_message_in_troubleshooting_is_one_of_wanpipe() -> None:
    known = {" ".join(text.split()) for text in literals()}
    shown = [block.text for block in blocks(ROOT / "docs" / "troubleshooting.md")]
    messages = [line for text in shown for line in text.splitlines() if "…" in line or ";" in line]
    assert len(messages) > 40
    # a message may be put together from several texts
    parts = [part.strip() for message in messages for part in re.split("…|[;,] ", message)]
    parts = [part for part in parts if len(part) > 3]
    assert [part for part in parts if not any(part in text for text in known)] == []


def test_the_page_for_developers_knows_the_tree() -> None:
    text = (ROOT / "docs" / "developers.md").read_text("utf-8")
    assert re.findall(r"^\| `((?:wanpipe|stages)[\w.]*)` \|", text, re.MULTILINE) == list(FLOORS)
    paths = re.findall(r"`((?:wanpipe|stages|tests|bench|docs)/[\w./-]*)`", text)
    assert len(paths) > 30
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


def test_every_name_for_developers_is_in_the_file_that_it_is_said_to_be_in() -> None:
    text = (ROOT / "docs" / "developers.md").read_text("utf-8")
    pairs = re.findall(r"`(\w+)`[^`\n]* in `((?:wanpipe|stages|tests)/[\w/]+\.py)`", text)
    assert len(pairs) >= 8
    missing = [
        (name, file)
        for name, file in pairs
        if name not in re.findall(r"\w+", (ROOT / file).read_text("utf-8"))
    ]
    assert not missing


def test_every_name_for_developers_is_in_the_source() -> None:
    text = (ROOT / "docs" / "developers.md").read_text("utf-8")
    names = re.findall(r"`(?:\w+\.)*(\w+)(?:\(.*?\))?`", text)
    sources = [
        *ROOT.glob("wanpipe/**/*.py"),
        *ROOT.glob("stages/*.py"),
        *ROOT.glob("tests/**/*.py"),
    ]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text("utf-8"))}
    others = {"NAME", "ruff"}  # a placeholder and a program
    assert not set(names) - words - others
