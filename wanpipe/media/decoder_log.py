"""Reads what ffmpeg says of a video: what is lost, why it failed, how long it should be."""

import re

from wanpipe.runtime.text import printable

LEVEL = re.compile(r"\[(?:warning|error|fatal)\] *(.*)")
FAILURE = re.compile(r"\[(?:error|fatal)\] *(.*)")
DAMAGE = re.compile(
    r"partial file|ended prematurely|[Pp]acket corrupt|corrupt input packet|corrupt decoded frame|"
    r"[Tt]runcat|Decoding error|Error submitting packet|Error during demuxing|chunk too big|"
    r"LZW decode failed|EOI missing|read_timestamp failed|[Ee]rror while decoding|concealing"
)
DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
RATE = re.compile(r"Video: .*?([\d.]+k?) (?:fps|tbr)")


def damage(said: str) -> str:
    """Return what ffmpeg says about lost frames, or nothing."""
    found = (match[1] for match in LEVEL.finditer(said) if DAMAGE.search(match[1]))
    return printable(next(found, "").strip().rstrip("."))


def reason(said: str) -> str:
    """Return the first complaint of ffmpeg, which names the cause; the later ones follow."""
    found = FAILURE.search(said) or LEVEL.search(said)
    return printable(found[1].strip().rstrip(".")) if found else "ffmpeg gave no reason"


def declared(said: str) -> float:
    """Return the duration that the video's header declares, in seconds, or 0."""
    found = DURATION.search(said)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else 0.0


def rate(said: str) -> float:
    """Return the frames per second that ffmpeg estimates, or 0."""
    found = RATE.search(said)
    return float(found[1].replace("k", "e3")) if found else 0.0
