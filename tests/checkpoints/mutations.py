"""Spoils files on purpose: each mutation is drawn from dice and keeps the file's outer form.

Bytes changed at random are in test_hostile; here are the lies that a format lets one tell.
"""

import copy
import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from tests.checkpoints.torchfile import Raw, encode

HUGE = (1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 64, 10**400)
NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 1 << 16, *HUGE)
ODD: tuple[Any, ...] = (
    None, True, False, "", "x", "../../etc/passwd", "/etc/passwd", "a\nb", "\0", "\ud800",
    "é" * 300, -1, 0, 3, 1e308, -0.5, float("nan"), float("inf"), *HUGE,
    [], {}, [[]], [1, 2, 2], [-1, -1], ["x"], {"x": {}}, [None] * 9, {"": ""},
)  # fmt: skip
NAMES = (
    "", "\0", "a\nb", "../x", "\u202e", "blocks..weight", "blocks.99999999999999999999.modulation",
    "blocks.-1.modulation", "{i}", "{0.__class__}", "%s", "x" * 5000, "__metadata__",
    "blocks.0.self_attn.q.weight", "scaled_fp8", "shared.weight", "decoder.conv1.weight",
    "blocks.0.attn1.to_q.weight", "img_emb.emb_pos", "img_emb.proj.0.weight",
)  # fmt: skip
DTYPES = ("F64", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "", "f32")

Dice = random.Random


def odd_json(dice: Dice, text: str) -> bytes:
    """Change one value somewhere in a JSON document, a key, or how it is written."""
    data = json.loads(text)
    for _ in range(dice.randint(1, 2)):
        spot = data
        for _ in range(dice.randrange(6)):
            inside = list(spot.values()) if isinstance(spot, dict) else spot[:50]
            deeper = [value for value in inside if isinstance(value, dict | list) and value]
            if not deeper:
                break
            spot = dice.choice(deeper)
        _spoil(dice, spot)
    written = json.dumps(data, ensure_ascii=dice.random() < 0.5)
    match dice.randrange(14):
        case 0:
            return written.encode("utf-16", "surrogatepass")
        case 1:
            return b"\xef\xbb\xbf" + written.encode("utf-8", "surrogatepass")
        case 2:
            return written[: dice.randrange(len(written))].encode("utf-8", "surrogatepass")
        case 3:
            return b"[" * dice.choice((10, 100_000))
        case 4:
            return b'{"a":' * 50_000
        case 5:
            return written.replace("{", '{"dim": 1, "dim": 2, ', 1).encode("utf-8", "surrogatepass")
    return written.encode("utf-8", "surrogatepass")


def _spoil(dice: Dice, spot: Any) -> None:
    value = copy.deepcopy(dice.choice(ODD))
    if isinstance(spot, dict):
        keys = list(spot)
        action = dice.randrange(4) if keys else 3
        if action == 0:
            del spot[dice.choice(keys)]
        elif action == 3:
            spot[dice.choice(NAMES)] = value
        else:
            spot[dice.choice(keys)] = value
    elif isinstance(spot, list):
        spot[dice.randrange(len(spot)) if spot else 0 :][:1] = [value]
        spot.insert(dice.randrange(len(spot) + 1), value)


def safetensors(dice: Dice, data: bytes) -> bytes:
    """Let the header of a safetensors file tell a lie."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(dice.randint(1, 2)):
        body = _lie(dice, header, body)
    text = json.dumps(header).encode()
    match dice.randrange(16):
        case 0:
            text = text.replace(b"{", b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},', 2)
        case 1:
            return dice.choice((length - 1, length + 1, *HUGE[:4])).to_bytes(8, "little") + data[8:]
        case 2:
            text = b"[" * 200_000
        case 3:
            text = text.replace(b'"shape"', b'"shape": [1], "shape"', 1)
        case 4:
            text = text.decode().encode("utf-16")
        case 5:
            text += b" " * dice.choice((7, 1 << 20, 1 << 24))
    return len(text).to_bytes(8, "little") + text + body


def _lie(dice: Dice, header: dict[str, Any], body: bytes) -> bytes:
    names = [name for name in header if name != "__metadata__"]
    name, other = dice.choice(names), dice.choice(names)
    entry = header[name]
    numbers = isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list)
    match dice.randrange(12):
        case 0 if numbers and isinstance(entry.get("shape"), list) and entry["shape"]:
            shape = entry["shape"]
            shape[dice.randrange(len(shape))] = dice.choice((*NUMBERS, 1.5, "4", None))
        case 1:
            entry["shape"] = dice.choice(([], [0], [1 << 62, 0], [1] * 9, [1 << 32, 1 << 32], "4"))
        case 2:
            entry["dtype"] = dice.choice(DTYPES)
        case 3 if numbers:
            entry["data_offsets"] = copy.copy(header[other]["data_offsets"])
        case 4 if numbers:
            begin, end = entry["data_offsets"]
            moved = dice.choice((-4, 4, 1 << 20, len(body), 1 << 62))
            entry["data_offsets"] = [begin + moved, end + moved]
        case 5:
            entry["data_offsets"] = dice.choice(([], [0], [8, 4], [0, 1 << 63], ["0", "4"], None))
        case 6:
            header[dice.choice(NAMES)] = header.pop(name)
        case 7:
            del header[name]
        case 8:
            header["__metadata__"] = copy.deepcopy(dice.choice(ODD))
        case 9:
            header[name] = copy.deepcopy(dice.choice(ODD))
            header.setdefault(other, entry)
        case 10:
            return body[: dice.randrange(len(body))]
        case 11:
            place = dice.randrange(len(body) - 8)
            bits = dice.choice((b"\xff" * 8, b"\0\0\xc0\x7f" * 2, b"\0\0\x80\x7f" * 2))
            return body[:place] + bits + body[place + 8 :]
    return body


def gguf(dice: Dice, data: bytes) -> bytes:
    """Let the header of a GGUF file tell a lie: a count, a length, a type, an axis, an offset."""
    spoilt = bytearray(data)
    ends = [found.end() for found in re.finditer(rb"\.weight", data)]  # of names of tensors
    for _ in range(dice.randint(1, 2)):
        # what follows a name: count of axes, their lengths, type, offset
        place, width = dice.choice(ends) + 4 * dice.randrange(8), dice.choice((1, 4, 8))
        match dice.randrange(6):
            case 0:
                place, width = dice.choice(((4, 4), (8, 8), (16, 8)))  # version and counts
            case 1:
                return bytes(spoilt[: dice.randrange(len(spoilt))])
            case 2:
                name = dice.choice(NAMES).encode("utf-8", "surrogatepass")
                start = dice.choice(ends) - len(".weight")
                spoilt[start : start + len(name)] = name
                continue
        limit = (1 << 8 * width) - 1
        number = dice.choice((0, 1, 2, 5, 8, 9, 12, 15, 30, 32, 64, 255, *HUGE[:4], limit))
        spoilt[place : place + width] = min(number, limit).to_bytes(width, "little")
    return bytes(spoilt)


def torch_zip(dice: Dice, data: bytes) -> bytes:
    """Let the directory of a torch archive, or its pickle, tell a lie."""
    if dice.random() < 0.5:
        return _directory(dice, bytearray(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(name for name in members if name.endswith("data.pkl"))
    method = zipfile.ZIP_STORED
    match dice.randrange(8):
        case 0:
            folder = root.removesuffix("data.pkl")
            members[dice.choice(("../x", "/etc/x", f"{folder}../../x", "a\\b", "a" * 60_000))] = b""
        case 1:
            del members[dice.choice(list(members))]
        case 2:
            name = dice.choice(list(members))
            members[name] = members[name][: dice.randrange(1 + len(members[name]))]
        case 3:
            method = dice.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            members["bomb/data.pkl"] = bytes(4 << 20)
        case _:
            members[root] = _pickle(dice, members[root])
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return result.getvalue()


def _directory(dice: Dice, data: bytearray) -> bytes:
    """Write an odd number into a field of a zip header, or of the end of the directory."""
    signatures = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")
    signature = dice.choice(signatures[:3] if b"PK\6\6" not in data else signatures)
    places = []
    start = data.find(signature)
    while start >= 0:
        places.append(start)
        start = data.find(signature, start + 4)
    place = dice.choice(places) + dice.randrange(4, 46)
    width = dice.choice((1, 2, 4, 8))
    limit = (1 << 8 * width) - 1
    value = dice.choice((0, 1, 8, 0xFFFF, 0xFFFFFFFE, 0xFFFFFFFF, len(data), limit, limit - 1))
    data[place : place + width] = min(value, limit).to_bytes(width, "little")
    if dice.random() < 0.2:
        length = dice.choice((0, 46, 0xFFFFFFFF))
        data += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, length, 0, 0)
    return bytes(data)


def _pickle(dice: Dice, data: bytes) -> bytes:
    """Insert instructions, or replace a number or a name that the pickle pushes."""
    place = dice.randrange(2, len(data))
    extra: Callable[[Any], bytes] = encode
    match dice.randrange(7):
        case 0:
            return data[:place] + extra(dice.choice((None, 7, "x", (), (1, 2), {}))) + data[place:]
        case 1:
            opcode = bytes([dice.randrange(256)]) * dice.choice((1, 2, 100_000))
            return data[:place] + opcode + data[place:]
        case 2:
            at = data.find(b"K", place)
            return data[: at + 1] + bytes([dice.randrange(256)]) + data[at + 2 :]
        case 3:
            return data.replace(
                b"M", b"J" + struct.pack("<i", dice.choice((-1, 1 << 30))) + b"0M", 1
            )
        case 4:
            classes = (b"DoubleStorage", b"LongStorage", b"Storage", b"Module", b"BoolStorage")
            return data.replace(b"BFloat16Storage", dice.choice(classes))
        case 5:
            names = (b"posix\nsystem\n", b"builtins\neval\n", b"torch\nload\n", b"os\nfork\n")
            return data.replace(b"torch._utils\n_rebuild_tensor_v2\n", dice.choice(names), 1)
    cycle = Raw(b"]q\xfah\xfaa").code  # a list that holds itself
    return data[:place] + cycle + b"0" + data[place:]
