"""Kills at random moments over all five stages: nothing that was finished is lost or wrong.

bench/kills.py does it two hundred times.
"""

import io
import multiprocessing
import signal
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.soak import RUN, Campaign, Ended
from wanpipe.backend.device import is_cuda

pytestmark = pytest.mark.slow

KILLS = 12
# forks from a process that has loaded what a run needs, so that kills fall into the work itself
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.test_kills", "stages.run", "wanpipe.models.vae.vae"])


def film(folder: Path) -> None:
    """Make the films from the checkpoint, all five stages."""
    from wanpipe.app import main

    with chdir(folder), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(RUN)


def killed_run(folder: Path, number: int | None, seconds: float) -> Ended:
    """Run in a forked process and kill it after so many seconds, or never."""
    process = server.Process(target=film, args=(folder,))
    process.start()
    process.join(None if number is None else seconds)
    process.kill()  # without effect on one that has come to its end
    process.join()
    return Ended(process.exitcode, "", "")


@pytest.mark.long
@pytest.mark.skipif(is_cuda(), reason="a process that began CUDA cannot be forked")
def test_kills_over_all_stages_lose_nothing(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, killed_run, [signal.SIGKILL])
    campaign.go(KILLS)
    assert not list((campaign.place / "cache" / ".damaged").glob("*"))
