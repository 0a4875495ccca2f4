"""Options that `wanpipe sweep` and `wanpipe worker` share, named as those of `dask worker`."""

from pathlib import Path
from typing import Any

import click

from wanpipe.cli.options import PATH, group
from wanpipe.sweeps.connection import Tls

tls = group(
    click.option(
        "--tls-ca-file",
        type=PATH,
        metavar="FILE",
        help="Trust certificates that this authority signed, for tls:// (PEM).",
    ),
    click.option(
        "--tls-cert", type=PATH, metavar="FILE", help="Show this certificate, for tls:// (PEM)."
    ),
    click.option(
        "--tls-key",
        type=PATH,
        metavar="FILE",
        help="Use this private key of --tls-cert (PEM).",
    ),
)


def take_tls(asked: dict[str, Any]) -> Tls:
    """Take the files of TLS out of the options of a command."""

    def take(name: str) -> Path | None:
        path: Path | None = asked.pop(name)
        return path

    return Tls(ca_file=take("tls_ca_file"), cert=take("tls_cert"), key=take("tls_key"))
