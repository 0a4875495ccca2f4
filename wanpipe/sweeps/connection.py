"""What wanpipe asks of dask.distributed on every side: the library itself, addresses, TLS.

Loads Dask only inside functions; it is an extra.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import UsageError, WanpipeError

if TYPE_CHECKING:
    from distributed import Security

ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The files of TLS: the authority that signs all sides, and this side's certificate and key."""

    ca_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def load() -> None:
    """Import Dask, with its log off: what a user must know is told by wanpipe. Raises WanpipeError
    if it is not installed.
    """
    try:
        import dask
    except ImportError as error:
        raise WanpipeError(
            "a sweep needs Dask, which is not installed; run `pip install 'wanpipe[dask]'`"
        ) from error
    names = ("distributed", "distributed.client", "distributed.worker")
    dask.config.set({"logging": dict.fromkeys(names, "critical")})
    import distributed  # noqa: F401

    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def check_address(address: str, tls: Tls) -> None:
    """Raise UsageError for an address that is none, or that its TLS files do not fit."""
    if not ADDRESS.fullmatch(address):
        raise UsageError(
            f"--scheduler must be tcp://HOST:PORT or tls://HOST:PORT, got {address!r}; give the "
            "address that `dask scheduler` prints"
        )
    files = {"--tls-ca-file": tls.ca_file, "--tls-cert": tls.cert, "--tls-key": tls.key}
    secure = address.startswith("tls://")
    for option, path in files.items():
        if secure and path is None:
            raise UsageError(f"a scheduler at tls:// needs {option}; give its file")
        if not secure and path is not None:
            raise UsageError(f"{option} is for tls://, got {address}; use tls:// on every side")
        if path is not None and not path.is_file():
            raise UsageError(f"{option} {path} is not a file; give a file in PEM format")


def check_trusted(error: BaseException | None, address: str) -> None:
    """Raise WanpipeError if an error of connecting is that of a certificate that is not trusted."""
    from distributed.comm.core import FatalCommClosedError

    while error is not None:
        if isinstance(error, FatalCommClosedError):
            raise WanpipeError(
                f"the certificate of {address} must be signed by the authority of --tls-ca-file, "
                "and is not; give all sides certificates of one authority"
            ) from error
        error = error.__cause__ or error.__context__


def security(tls: Tls) -> "Security | None":
    """Return Dask's own form of the TLS files; None without them."""
    if tls.ca_file is None:
        return None
    import ssl

    from distributed import Security

    pair = {"cert": str(tls.cert), "key": str(tls.key)}
    fields = {
        f"tls_{side}_{what}": path
        for side in ("client", "scheduler", "worker")
        for what, path in pair.items()
    }
    found = Security(tls_ca_file=str(tls.ca_file), require_encryption=True, **fields)
    try:
        found.get_connection_args("client")["ssl_context"]
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"the files of TLS cannot be used: {error}; give certificates and keys in PEM format"
        ) from error
    return found
