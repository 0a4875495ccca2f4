"""doctor: check what wanpipe needs: the device, memory, ffmpeg, the cache and its disk.

Reads: the versions, the device, ffmpeg, the disk and the index of the cache, the remote if given.
Writes: nothing that stays; prints one line per check on stdout.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import click

from wanpipe.cache.listing import usage
from wanpipe.cli.messages import count
from wanpipe.cli.options import group
from wanpipe.cli.printing import print_json, print_lines
from wanpipe.cli.progress import make_report
from wanpipe.cli.session import REMOTE, cache_option, output_options, remote_option
from wanpipe.errors import StoreError, WanpipeError
from wanpipe.runtime.disk import NO_EXCHANGE, fsync, rename_exchange
from wanpipe.runtime.documents import first_line
from wanpipe.runtime.text import printable
from wanpipe.runtime.units import format_si
from wanpipe.runtime.version import version
from wanpipe.store import Store
from wanpipe.store.entry import read_entry
from wanpipe.store.locks import has_locks

OK, WARNING, PROBLEM = "ok", "warning", "problem"
FAILURES = (
    WanpipeError,
    OSError,
    ImportError,
    RuntimeError,
    ValueError,
    subprocess.SubprocessError,
)
LEAST_MEMORY = 4 * 10**9  # bytes; the 1.3B transformer with its text encoder streamed
LEAST_DISK = 10 * 10**9  # bytes; the converted 1.3B model takes more
READ = 1000  # entries whose records are read
SIDE = 256  # of the matrices that are multiplied
ERRORS = {"float32": 1e-5, "bfloat16": 2e-2}  # relative, of their product
ENCODERS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "gif": ".gif"}
FFMPEG_SECONDS = 20
# what changes how wanpipe works; of others the value may be a secret
SHOWN = {"WANPIPE_CACHE", "WANPIPE_EXACT", "PYTHONPATH", "HF_HOME"}
SHOWN |= {"MLX_ENABLE_TF32", "MLX_MAX_MB_PER_BUFFER", "MLX_MAX_OPS_PER_BUFFER"}
SHOWN |= {"MLX_RANK", "MLX_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "IMAGEIO_FFMPEG_EXE"}
SHOWN |= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
NAMED = re.compile(r"(WANPIPE|MLX|NCCL|HF|AWS|AZURE|GOOGLE)_\w+|(HTTPS?|NO|ALL)_PROXY")
REQUIREMENT = re.compile(r'([\w.-]+)(\[)?.*extra == "([\w-]+)"')


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found: its state, "ok", "warning" or "problem", and the remedy for these."""

    check: str
    text: str
    state: str = OK
    remedy: str = ""


def run(store: Store, remote: str | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Carry out every check, one after another. `remote` is a URL."""
    checks: dict[str, tuple[Callable[[], Finding], str]] = {
        "wanpipe": (versions, "install wanpipe again"),
        "device": (device, "install MLX for this device: pip install 'wanpipe[cpu]' or [cuda13]"),
        "compute": (compute, "update the driver and MLX"),
        "memory": (memory, "update MLX"),
        "ffmpeg": (ffmpeg, "reinstall imageio-ffmpeg"),
        "disk": (lambda: disk(store.root), "use --cache with a folder that can be written"),
        "cache": (lambda: health(store), "run `wanpipe cache verify`"),
    }
    if remote is not None:
        checks["remote"] = (lambda: reach(remote), "check the URL, the network and the credentials")
    checks["extras"] = extras, "install wanpipe again"
    for name, (check, remedy) in checks.items():
        try:
            yield replace(check(), check=name)
        except FAILURES as error:
            yield Finding(check=name, state=PROBLEM, text=first_line(error), remedy=remedy)
    yield Finding(check="environment", text=describe_environment(environment))


def versions() -> Finding:
    """Name the versions of wanpipe, Python and the system."""
    system = platform.platform(terse=True)
    if sys.platform == "darwin":
        system = f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return Finding(
        check="", text=f"wanpipe {version()}, Python {platform.python_version()}, {system}"
    )


def device() -> Finding:
    """Name the device, and MLX with its backend; warn if a GPU is not used."""
    import mlx.core as mx

    from wanpipe.backend import cuda_driver
    from wanpipe.backend.device import describe, is_cuda, is_metal

    backend = "CUDA" if is_cuda() else "Metal" if is_metal() else "CPU"
    mlx = mx.__version__  # type: ignore[attr-defined]  # missing in MLX's type stubs
    text = f"{describe()}, MLX {mlx} on {backend}"
    if backend == "CPU" and cuda_driver.driver() is not None:
        remedy = "install MLX for CUDA: pip install 'wanpipe[cuda13]'"
        return Finding(check="", state=WARNING, text=f"{text}; a GPU is not used", remedy=remedy)
    if backend == "CPU" and sys.platform == "darwin":
        remedy = "use Python for Apple silicon, and macOS 14 or newer"
        return Finding(check="", state=WARNING, text=f"{text}; Metal is not used", remedy=remedy)
    return Finding(check="", text=text)


def compute() -> Finding:
    """Multiply two matrices on the device, and compare the product with NumPy's."""
    import mlx.core as mx
    import numpy as np

    from wanpipe.backend.device import mlx_dtype

    random = np.random.Generator(np.random.Philox(0))
    pair = [random.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2)]
    exact = pair[0].astype(np.float64) @ pair[1].astype(np.float64)
    texts, wrong = [], False
    for dtype, limit in ERRORS.items():
        product = np.array(
            (
                mx.array(pair[0]).astype(mlx_dtype(dtype))
                @ mx.array(pair[1]).astype(mlx_dtype(dtype))
            ).astype(mx.float32)
        )
        error = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
        wrong |= not error <= limit  # NaN is wrong too
        texts.append(f"{dtype} {error:.0e}")
    text = f"relative error of a matrix product: {', '.join(texts)}"
    if wrong:
        remedy = "unset MLX_ENABLE_TF32, and update the driver and MLX"
        return Finding(check="", state=PROBLEM, text=text, remedy=remedy)
    return Finding(check="", text=text)


def memory() -> Finding:
    """Tell the memory of the device, and how much of it plans use."""
    import mlx.core as mx

    from wanpipe.backend.device import is_gpu, recommended_memory

    found, recommended = mx.device_info(), recommended_memory()
    total = found.get("memory_size") or found.get("total_memory")
    if total is None and not is_gpu():
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [f"{format_si(int(total), 'B')} in all"] if total else []
    if "free_memory" in found:
        parts.append(f"{format_si(int(found['free_memory']), 'B')} free")
    text = ", ".join([*parts, f"{format_si(recommended, 'B')} recommended"])
    if recommended < LEAST_MEMORY:
        remedy = "close other programs, or quantize the model"
        return Finding(check="", state=WARNING, text=text, remedy=remedy)
    return Finding(check="", text=text)


def ffmpeg() -> Finding:
    """Find ffmpeg, its version and the encoders that videos need."""
    from wanpipe.media.ffmpeg import program

    path = program()

    def ask(option: str) -> str:
        command = [path, "-hide_banner", option]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=FFMPEG_SECONDS, check=True
        ).stdout

    form = re.match(r"ffmpeg version (\S+)", ask("-version"))
    there = set(re.findall(r"^ \S+ (\S+)", ask("-encoders"), re.MULTILINE))
    text = f"ffmpeg {form[1] if form else '?'} at {path}"
    if missing := [name for name in ENCODERS if name not in there]:
        lost = ", ".join(ENCODERS[name] for name in missing)
        remedy = f"without it no {lost} can be written; reinstall imageio-ffmpeg"
        return Finding(
            check="", state=WARNING, text=f"{text}, without {', '.join(missing)}", remedy=remedy
        )
    return Finding(check="", text=f"{text}, with {', '.join(ENCODERS)}")


def disk(root: Path) -> Finding:
    """Try locks, flushing and atomic renames on the disk of the cache, and tell its free space."""
    home = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(home).free
    lacks = []
    with tempfile.TemporaryDirectory(prefix=".wanpipe-doctor-", dir=home) as folder:
        one, other = Path(folder, "one"), Path(folder, "other")
        one.mkdir()
        other.mkdir()
        (one / "file").write_bytes(b"1")
        lacks += [] if has_locks(one) else ["locks"]
        lacks += [] if fsync(one / "file") and fsync(one) else ["flushing of folders"]
        try:
            rename_exchange(one, other)
        except OSError as error:
            if error.errno not in NO_EXCHANGE:
                raise
            lacks.append("exchange of folders")
        one.rename(Path(folder, "third"))
    text = f"{home}: {format_si(free, 'B')} free, {file_system(home)}"
    if lacks:
        remedy = "use a local disk if two commands may use the cache, or after a power loss"
        return Finding(
            check="", state=WARNING, text=f"{text}, without {', '.join(lacks)}", remedy=remedy
        )
    if free < LEAST_DISK:
        remedy = "make room: `wanpipe cache gc --help`"
        return Finding(check="", state=WARNING, text=text, remedy=remedy)
    return Finding(check="", text=f"{text}, with locks, flushing and atomic renames")


def file_system(path: Path) -> str:
    """Return the type of the file system that a folder is on, where the system tells it."""
    if sys.platform == "darwin":  # /dev/disk3s1 on / (apfs, local)
        mounts = subprocess.run(["/sbin/mount"], capture_output=True, text=True).stdout
        form = re.compile(r".* on (.+) \((\w+)")
    else:  # /dev/sda1 / ext4 rw 0 0
        table = Path("/proc/self/mounts")
        mounts = table.read_text("utf-8", errors="replace") if table.is_file() else ""
        form = re.compile(r"\S+ (\S+) (\S+)")
    best, kind = "", "unknown file system"
    for place, name in (found.groups() for found in map(form.match, mounts.splitlines()) if found):
        if len(place) >= len(best) and path.resolve().is_relative_to(place):
            best, kind = place, name
    return kind


def health(store: Store) -> Finding:
    """Count entries, and those set aside as damaged, or with damaged records among the latest
    `READ`; arrays are not read.
    """
    if not store.root.is_dir():
        return Finding(check="", text=f"no cache at {store.root} yet")
    sizes = usage(store)
    whole, aside = sizes["in all"], sizes.get(".damaged", {"entries": 0})["entries"]
    rows, ids = store.index.read(), list(store.index.list_ids())
    latest = sorted(ids, key=lambda one: rows[one].time if one in rows else "~", reverse=True)
    damaged = sum(not is_sound(store.root / one) for one in latest[:READ])
    counts = f"{count(len(ids), 'entry')}, {count(len(store.runs.list_keys()), 'run')}"
    text = f"{counts}, {format_si(whole['bytes'], 'B')}; {damaged} damaged, {aside} set aside"
    if damaged or aside:
        remedy = "run `wanpipe cache verify --repair`, and check the disk"
        return Finding(check="", state=WARNING, text=text, remedy=remedy)
    return Finding(check="", text=text)


def is_sound(path: Path) -> bool:
    """Return whether an entry has the record and the metadata that it was published with."""
    try:
        read_entry(path)
    except StoreError:
        return False
    return True


def reach(url: str) -> Finding:
    """Ask the remote for what is in it; a web server, which has no listing, for an object."""
    from wanpipe.cache.remote.bucket import Bucket

    bucket = Bucket(url)
    if bucket.read_only:
        bucket.size("convert")
    else:
        bucket.folders()
    return Finding(
        check="", text=f"{without_secrets(url)} answers{', read only' if bucket.read_only else ''}"
    )


def extras() -> Finding:
    """List the optional packages that are installed, and those that are not."""
    try:
        lines = metadata.requires("wanpipe") or []
    except metadata.PackageNotFoundError:
        return Finding(check="", text="wanpipe runs from its source tree")
    found: dict[str, bool] = {}
    for form in filter(None, map(REQUIREMENT.match, lines)):
        name, variant, extra = form.groups()
        if variant is None:  # else a variant of MLX, which the device shows
            found[extra] = found.get(extra, True) and is_installed(name)
    shown = [
        f"{extra} {'installed' if there else 'not installed'}" for extra, there in found.items()
    ]
    return Finding(check="", text=", ".join(shown) or "none")


def is_installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe_environment(environment: Mapping[str, str]) -> str:
    """Return the variables that change how wanpipe works; the values only of some, without
    secrets.
    """
    shown = []
    for name in sorted(environment):
        if name in SHOWN:
            shown.append(f"{name}={environment[name]}")
        elif name == REMOTE:
            shown.append(f"{name}={without_secrets(environment[name])}")
        elif NAMED.fullmatch(name.upper()):
            shown.append(f"{name} is set")
    return ", ".join(shown) or "no variable is set"


def without_secrets(url: str) -> str:
    """Return a URL without user, password and query, which may be credentials."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "an invalid URL"
    return f"{parts.scheme}://{host}{parts.path}"


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@group(cache_option, remote_option, output_options)
def command(
    as_json: bool, cache: Path, remote: str | None, events: str | None, quiet: bool
) -> None:
    """Check what wanpipe needs, and print one line per check.

    Shows versions, the device, memory, ffmpeg, the disk and the cache: paste it into a bug report.
    It has no credentials. A warning or a problem comes with its remedy. The exit code is 1 if
    something is broken.
    """
    store = Store(cache, make_report(events, quiet), read_only=True)
    broken = 0
    for finding in run(store, remote, dict(os.environ)):
        broken += finding.state == PROBLEM
        if as_json:
            print_json(asdict(finding))
        else:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            line = f"{finding.state:<8} {finding.check:<12} {finding.text}{remedy}"
            print_lines([printable(line)])
    if broken:
        raise WanpipeError(f"{count(broken, 'check')} found a problem; see the lines above")
