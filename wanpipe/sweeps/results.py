"""The results of a sweep: a table of its videos as CSV or JSON, and a contact sheet."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime.documents import encode
from wanpipe.runtime.output import check_writable, replace_output
from wanpipe.store import DamageError, Store
from wanpipe.sweeps.node import Graph, Outcome, Video

if TYPE_CHECKING:
    import numpy as np

SHOWN, WIDTH = 6, 160  # frames of a video on the sheet, and the pixels of each across
MOST_ROWS = 200  # videos on a sheet: more would be too large for viewers
LABEL = 100  # letters
ENDED = ("exists", "done")
STAGES = ("encode-text", "encode-image", "encode-video", "denoise", "decode")


def check_outputs(table: Path | None, sheet: Path | None) -> None:
    """Raise UsageError for a table or a sheet of another format; WanpipeError if it cannot be
    written.
    """
    for option, path, known in (("table", table, (".csv", ".json")), ("sheet", sheet, (".png",))):
        if path is None:
            continue
        if path.suffix.lower() not in known:
            raise UsageError(f"--{option} must end in {' or '.join(known)}, got {path.name}")
        try:
            check_writable(path)
        except OSError as error:
            raise WanpipeError(f"{path} cannot be written: {error.strerror or error}") from error


def state_of(video: Video, outcomes: Mapping[str, Outcome]) -> Outcome:
    """Return what became of a video: of its frames. What was not reached is skipped."""
    key = video.keys["decode"]
    return outcomes.get(key, Outcome(key=key, state="skipped", error="it was not reached"))


def rows_of(graph: Graph, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """Return a row for each video: its path, what it was made with, the keys of its entries, the
    seconds of all that it needed, and its state.
    """
    options = list(dict.fromkeys(name for video in graph.videos for name in video.values))
    seconds: dict[str, float] = {}
    for node in graph.nodes:
        outcome = outcomes.get(node.key)
        for name in node.videos if outcome is not None else ():
            seconds[name] = seconds.get(name, 0.0) + (outcome.seconds if outcome else 0.0)
    rows = []
    for video in graph.videos:
        made = state_of(video, outcomes)
        rows.append(
            {
                "video": video.path,
                "state": made.state,
                **{name: plain(video.values.get(name)) for name in options},
                **{name: video.keys[name] for name in STAGES if name in video.keys},
                "seconds": round(seconds.get(video.name, 0.0), 3),
                "error": made.error,
            }
        )
    return rows


def plain(value: Any) -> Any:
    """Return the value of an option as JSON has it."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as .csv or .json. Raises OSError."""
    if path.suffix.lower() == ".json":
        data = encode(list(rows))
    else:
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = csv.DictWriter(text, names)
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in rows)
        data = text.getvalue().encode("utf-8", "backslashreplace")
    with replace_output(path) as draft:
        draft.write_bytes(data)


def cell(value: Any) -> Any:
    """Return a value as a cell of a table; parts are separated by blanks."""
    if isinstance(value, list):
        return " ".join(str(cell(one)) for one in value)
    return value


def write_sheet(
    path: Path, graph: Graph, outcomes: Mapping[str, Outcome], store: Store
) -> Path | None:
    """Draw a row of frames for each video that is there; return `path`, or None if none is."""
    from wanpipe.media.video import contact_sheet

    made = [video for video in graph.videos if state_of(video, outcomes).state in ENDED]
    if len(made) > MOST_ROWS:
        store.report.remark(f"{path} shows the first {MOST_ROWS} of {len(made)} videos")
    rows = []
    for video in made[:MOST_ROWS]:
        frames = thumbnails(store, video.keys["decode"])
        if frames is not None:
            rows.append((video.name[:LABEL], frames))
    if not rows:
        return None
    with replace_output(path) as draft:
        contact_sheet(rows, columns=SHOWN, width=WIDTH).save(draft)
    return path


def thumbnails(store: Store, key: str) -> "np.ndarray | None":
    """Return some small frames (T, Y, X, 3) of an entry; None if it is gone or damaged."""
    import numpy as np
    from PIL import Image

    try:
        entry = store.peek("decode", key) if store.is_here("decode", key) else None
    except DamageError:
        return None
    if entry is None:
        return None
    count, height, width, _ = entry.shape("frames")
    wanted = {round(index * (count - 1) / (SHOWN - 1)) for index in range(SHOWN)}
    size = (WIDTH, max(1, round(WIDTH * height / width)))
    found, number = [], 0
    for block in entry.blocks("frames"):
        for frame in block:
            if number in wanted:
                found.append(np.asarray(Image.fromarray(frame).resize(size)))
            number += 1
    return np.stack(found)
