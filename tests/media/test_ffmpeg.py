"""What a video says of itself is read within limits, and nothing else is opened for it."""

import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.media.test_video import fake_ffmpeg, gradient
from wanpipe.errors import WanpipeError
from wanpipe.media import ffmpeg
from wanpipe.media.video import read_metadata, read_video, write_video

FRAME = np.zeros((1, 16, 16, 3), np.uint8)
MEMORY = """
import sys
from pathlib import Path
from tests.peak import peak_bytes
from wanpipe.errors import WanpipeError
from wanpipe.media.video import read_metadata
try:
    metadata = read_metadata(Path(sys.argv[1]))
except WanpipeError as error:
    metadata = {}
print(len(metadata.get("comment", "")), peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.mp4", "long.webm", "long.gif"])
def test_a_comment_of_100_mb_is_not_believed(name: str, tmp_path: Path) -> None:
    comment = json.dumps({"wanpipe": {"prompt": "x" * 100_000_000}})
    write_video(tmp_path / name, [FRAME], 8, {"comment": comment})
    assert (tmp_path / name).stat().st_size > 100_000_000
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / name],
        capture_output=True,
        text=True,
        check=True,
    )
    length, peak = map(int, done.stdout.split())
    assert length <= ffmpeg.MAX_METADATA_BYTES
    assert peak < 1 << 30
    assert time.monotonic() - started < 10


def test_reading_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "TIMEOUT_SECONDS", 0.3)
    write_video(tmp_path / "film.mp4", [FRAME], 8)
    with (
        fake_ffmpeg(tmp_path, monkeypatch, "exec sleep 60"),
        pytest.raises(WanpipeError, match=r"takes more than 0.3 s"),
    ):
        read_metadata(tmp_path / "film.mp4")


def test_a_playlist_named_as_a_video_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "secret.mp4", [gradient(5)], 8, {"comment": "secret"})
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.mp4"
        playlists = [
            f"ffconcat version 1.0\nfile secret.mp4\nfile {address}\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        ]
        for playlist in playlists:
            (tmp_path / "list.mp4").write_text(playlist)
            for read in (read_metadata, read_video):
                with pytest.raises(WanpipeError, match="cannot be read as a video"):
                    read(tmp_path / "list.mp4")
        server.shutdown()
    assert not asked


@pytest.mark.parametrize("cut", [*range(4, 30, 5), 60, 200])
def test_a_gif_that_is_cut_has_no_comment_or_a_part_of_it(cut: int, tmp_path: Path) -> None:
    data = write_video(tmp_path / "film.gif", [FRAME], 8, {"comment": "c" * 300}).read_bytes()
    (tmp_path / "cut.gif").write_bytes(data[:cut])
    assert set(read_metadata(tmp_path / "cut.gif")["comment"]) <= {"c"}
