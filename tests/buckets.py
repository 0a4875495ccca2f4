"""An object store in this process, and a proxy before one that does not always do what it should.

moto's S3 server speaks for Google Cloud Storage too: their XML interfaces differ in the header of a
conditional write, which is translated.
"""

import json
import random
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ANSWERS = ("500 Internal Server Error", "403 Forbidden", "412 Precondition Failed")
FAULTS = ("cut", "delay", "answer")
SIGNATURE = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
SESSION = secrets.token_hex(4)  # a store that stays has what earlier tests left
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-repeats",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Server:
    """An object store: the URL of a bucket, the endpoint where it listens, and the variables with
    which obstore finds it at an endpoint.
    """

    url: str
    endpoint: str
    environment: Callable[[str], dict[str, str]]

    @property
    def variables(self) -> dict[str, str]:
        """What obstore needs to find it."""
        return self.environment(self.endpoint)

    def place(self, folder: Path) -> str:
        """The place in the bucket of what is tried in a folder; servers in one process share it."""
        return f"{self.url}/{SESSION}/{folder.name}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """What obstore needs to find an S3 server."""
    return {**KEYS, "AWS_ENDPOINT_URL": endpoint}


def gcs_environment(endpoint: str) -> dict[str, str]:
    """What obstore needs to find a server of Google Cloud Storage's interface, without a token."""
    nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = {"gcs_base_url": endpoint, "disable_oauth": True, **nobody}
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)}


def create_bucket(endpoint: str) -> None:
    """Make the bucket `films` on an S3 server."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_REGION"],
    )
    client.create_bucket(Bucket="films")


@contextmanager
def serving(app: Callable[..., Iterable[bytes]]) -> Iterator[str]:
    """Serve a WSGI application on this machine; gives its endpoint."""

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def moto() -> Iterator[Server]:
    """An S3 server with the bucket `films`."""
    with serving(DomainDispatcherApplication(create_backend_app)) as endpoint:
        create_bucket(endpoint)
        yield Server("s3://films", endpoint, s3_environment)


@contextmanager
def gcs() -> Iterator[Server]:
    """A server of Google Cloud Storage's XML interface with the bucket `films`."""
    app = DomainDispatcherApplication(create_backend_app)

    def translated(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ["HTTP_AUTHORIZATION"] = SIGNATURE  # which moto does not check
        if environ.get("HTTP_X_GOOG_IF_GENERATION_MATCH") == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        return app(environ, start)

    with serving(translated) as endpoint:
        create_bucket(endpoint)
        yield Server("gs://films", endpoint, gcs_environment)


class Proxy:
    """Passes connections to a server. Until `left` faults are used up, some of them fail: the
    connection is cut after some bytes, waits, or gets an answer that the server did not give.
    """

    def __init__(self, endpoint: str, seed: int) -> None:
        parts = urlsplit(endpoint)
        self.target = (parts.hostname, parts.port)
        self.random, self.guard = random.Random(seed), threading.Lock()
        self.left, self.rate, self.faults = 0, 0.3, 0
        proxy = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy.serve(self.request)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fault(self) -> str | None:
        """What goes wrong with the next connection."""
        with self.guard:
            if self.left <= 0 or self.random.random() > self.rate:
                return None
            self.left, self.faults = self.left - 1, self.faults + 1
            return self.random.choice(FAULTS)

    def serve(self, client: socket.socket) -> None:
        """Serve one connection."""
        fault = self.fault()
        with suppress(OSError):
            if fault == "answer":
                client.recv(1 << 16)
                head = f"HTTP/1.1 {self.random.choice(ANSWERS)}\r\n"
                client.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
            if fault == "delay":
                time.sleep(self.random.uniform(0.05, 0.3))
            limit = self.random.choice((0, 100, 1500)) if fault == "cut" else None
            with socket.create_connection(self.target) as server:
                back = threading.Thread(target=self.copy, args=(server, client, limit), daemon=True)
                back.start()
                self.copy(client, server, None)
                back.join()

    def copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        """Copy bytes from one socket to another, at most `limit`, then close both."""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if limit is not None:
                    data, limit = data[:limit], limit - len(data)
                sink.sendall(data)
                if limit is not None and limit <= 0:
                    break
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no connection any more."""
        self.server.shutdown()
        self.server.server_close()
