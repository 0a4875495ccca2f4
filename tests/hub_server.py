"""A Hugging Face Hub on this machine: repositories in folders, served as the Hub serves them.

Speaks what huggingface_hub asks: the commit of a revision, the tree of a commit, and files, the
large ones behind a redirection to another host, in ranges. Can cut connections and refuse.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_letmein"  # the one that opens gated repositories
LARGE = (".safetensors", ".pth", ".bin")  # files that are stored apart (LFS)
PAGE = 5  # files in one answer with a tree


@dataclass
class Hub:
    """The state of a server: its repositories by ORG/NAME, and how it behaves."""

    url: str = ""
    folders: dict[str, Path] = field(default_factory=dict)
    uploads: Path | None = None  # a folder with more repositories
    branches: dict[str, str] = field(default_factory=dict)  # other names of a commit
    gated: set[str] = field(default_factory=set)
    cut: int = 1 << 62  # bytes after which the connection of a large file ends
    budget: int = 1 << 62  # bytes of large files that are sent in all
    status: int | None = None  # of every large file
    whole: bool = False  # large files are sent whole, whatever range is asked for
    damaged: bool = False  # large files are sent with another first byte
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of large files
    sending: threading.Lock = field(default_factory=threading.Lock)

    def folder(self, name: str) -> Path | None:
        """The folder of a repository, None if there is none."""
        uploaded = self.uploads / name if self.uploads is not None else None
        known = uploaded if uploaded is not None and uploaded.is_dir() else None
        return self.folders.get(name, known)

    def files(self, name: str) -> dict[str, Path]:
        """The files of a repository by path."""
        folder = self.folder(name)
        assert folder is not None, name
        return {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def commit(self, name: str) -> str:
        """The commit of a repository, by its contents."""
        state = hashlib.sha1()
        for path, file in self.files(name).items():
            state.update(f"{path} {identity(file)}\n".encode())
        return state.hexdigest()

    def tree(self, name: str) -> list[dict[str, Any]]:
        """The files of a repository, as the Hub lists them."""
        return [describe(path, file) for path, file in self.files(name).items()]


def identity(file: Path) -> str:
    """The hash of a file: sha256 for a large one, git's for others."""
    data = file.read_bytes()
    if file.suffix in LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(path: str, file: Path) -> dict[str, Any]:
    """A row of a tree."""
    size, digest = file.stat().st_size, identity(file)
    row: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": digest[:40]}
    if file.suffix in LARGE:
        row["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
    return row


class Requests(BaseHTTPRequestHandler):
    """Answers requests for the hub in `server.hub`."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        """The hub that is served."""
        assert isinstance(self.server, Server)
        return self.server.hub

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        token = self.headers.get("Authorization", "")
        self.hub.requests.append((self.command, path, self.headers.get("Range", ""), token))
        parts = path.split("/")
        if parts[0] == "blob":
            self.send_large("/".join(parts[1:3]), "/".join(parts[3:]))
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.answer("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "EntryNotFound")

    def known(self, name: str, revision: str) -> bool:
        """Whether a repository has a revision; refuses it else."""
        if self.hub.folder(name) is None:
            self.refuse(401, "RepoNotFound")
            return False
        commit = self.hub.commit(name)
        if self.hub.branches.get(revision, revision) not in ("main", commit):
            self.refuse(404, "RevisionNotFound")
            return False
        return True

    def answer(self, name: str, rest: list[str]) -> None:
        """Answer a question about a repository: its commit, or the tree of one."""
        kind, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if not self.known(name, revision):
            return
        if kind == "revision":
            self.send_json({"id": name, "modelId": name, "sha": self.hub.commit(name)})
            return
        query = urlsplit(self.path).query
        start = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        rows = self.hub.tree(name)
        more = f"{self.hub.url}/api/models/{name}/tree/{revision}?recursive=true&cursor="
        link = {"Link": f'<{more}{start + PAGE}>; rel="next"'} if len(rows) > start + PAGE else {}
        self.send_json(rows[start : start + PAGE], link)

    def resolve(self, name: str, revision: str, path: str) -> None:
        """Send a small file; redirect to a large one, on another host."""
        if not self.known(name, revision):
            return
        token = self.headers.get("Authorization")
        if name in self.hub.gated and token != f"Bearer {TOKEN}":
            self.refuse(401 if token is None else 403, "GatedRepo")
            return
        file = self.hub.files(name).get(path)
        if file is None:
            self.refuse(404, "EntryNotFound")
            return
        digest, size = identity(file), file.stat().st_size
        headers = {"X-Repo-Commit": self.hub.commit(name), "ETag": f'"{digest}"'}
        if file.suffix not in LARGE:
            self.send(200, file.read_bytes(), headers)
            return
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(size)}
        place = f"{elsewhere}/blob/{name}/{path}?signature=secret"
        self.send(302, b"", {**headers, "Location": place})

    def send_large(self, name: str, path: str) -> None:
        """Send a range of a large file, and end early where that is asked for."""
        data = self.hub.files(name)[path].read_bytes()
        if self.hub.status is not None:
            self.refuse(self.hub.status, "")
            return
        if self.hub.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        start = 0 if self.hub.whole else start
        if start >= len(data) > 0:
            self.refuse(416, "")
            return
        self.send_response(200 if self.hub.whole else 206)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        with self.hub.sending:
            body = data[start:][: min(self.hub.cut, self.hub.budget)]
            self.hub.budget -= len(body)
            self.hub.sent += len(body)
        self.close_connection = len(body) < len(data) - start
        self.wfile.write(body)

    def send_json(self, data: Any, headers: dict[str, str] | None = None) -> None:
        self.send(
            200, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def refuse(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": f"refused {code}"} if code else {}
        self.send(status, b"", headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves a hub, and prints nothing of a client that leaves."""

    hub: Hub

    def handle_error(self, *words: object) -> None:
        """Print nothing."""


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve an empty hub, on a free port."""
    server = Server(("127.0.0.1", 0), Requests)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def store_snapshot(cache: Path, source: Path, name: str, commit: str) -> Path:
    """Put a folder into a cache of the Hub, as a download does: a snapshot with links to blobs."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for file in source.rglob("*"):
        if file.is_file():
            link = snapshot / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = folder / "blobs" / identity(file)
            shutil.copyfile(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


if __name__ == "__main__":
    import sys
    import time

    with serve() as hub:
        for word in sys.argv[1:]:
            name, _, folder = word.partition("=")
            hub.folders[name] = Path(folder)
        print(hub.url, flush=True)
        time.sleep(10**6)
