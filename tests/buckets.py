"""An S3 server in this process, and a proxy before it that does not always do what it should."""

import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer

ANSWERS = ("500 Internal Server Error", "403 Forbidden", "412 Precondition Failed")
FAULTS = ("cut", "delay", "answer")
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-repeats",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


def environment(endpoint: str) -> dict[str, str]:
    """What obstore needs to find an S3 server."""
    return {**KEYS, "AWS_ENDPOINT_URL": endpoint}


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
def s3() -> Iterator[str]:
    """An S3 server with the bucket `films`; gives its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        create_bucket(endpoint)
        yield endpoint
    finally:
        server.stop()


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
