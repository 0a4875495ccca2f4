"""Lists the tensors of a torch checkpoint in zip format, without torch.

Reads no numbers. Legacy files (before torch 1.6) are refused.
"""

from pathlib import Path
from typing import Any, BinaryIO

from wanpipe.errors import CheckpointError
from wanpipe.weights.archive import RESAVE, Member, members
from wanpipe.weights.dtypes import STORED
from wanpipe.weights.pickled import StoredTensor, interpret
from wanpipe.weights.tensors import Place, TensorInfo, shown

SMALL = 1 << 21  # bytes; the pickle of a 14B model has 200 kB
WRAPPERS = ("state_dict", "model", "module")
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def list_tensors(file: BinaryIO, path: Path) -> dict[str, tuple[TensorInfo, Place]]:
    """Map names to what and where each tensor is. Raises CheckpointError that names `path`."""
    file.seek(0)
    start = file.read(len(LEGACY))
    if start == LEGACY:
        raise CheckpointError(f"{path} is in torch's legacy format; {RESAVE}")
    if not start.startswith(b"PK\3\4"):
        raise CheckpointError(
            f"{path} is not a torch checkpoint (no zip archive); download it again"
        )
    found = members(file, path)
    pickles = [name for name in found if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip archive without exactly one data.pkl; {RESAVE}")
    root = pickles[0].removesuffix("data.pkl")
    if read_member(file, found.get(f"{root}byteorder"), path) == b"big":
        raise CheckpointError(
            f"{path} holds big-endian numbers; {RESAVE} on a little-endian machine"
        )
    table = interpret(read_member(file, found[pickles[0]], path), str(path))
    result = {}
    for name, tensor in unwrap(table, path).items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {shown(str(name))} must be a tensor, got {kind}")
        result[name] = locate(tensor, found, root, path)
    return result


def read_member(file: BinaryIO, member: Member | None, path: Path) -> bytes:
    """Read a small member whole; nothing where there is none."""
    if member is None:
        return b""
    if member.size > SMALL:
        raise CheckpointError(f"{path} has a table of {member.size} bytes, more than {SMALL}")
    file.seek(member.offset)
    return file.read(member.size)


def unwrap(table: Any, path: Path) -> dict[Any, Any]:
    """Find the table of tensors, at the top or in one of the usual wrapping dicts."""
    for _ in range(len(WRAPPERS)):
        inner = [table[key] for key in WRAPPERS if isinstance(table, dict) and key in table]
        if not inner or not isinstance(inner[0], dict):
            break
        table = inner[0]
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path} must hold a table of tensors, got {type(table).__name__}")
    return table


def locate(
    tensor: StoredTensor, found: dict[str, Member], root: str, path: Path
) -> tuple[TensorInfo, Place]:
    """Translate a view of a storage into bytes of the file."""
    storage = tensor.storage
    member = found.get(f"{root}data/{storage.key}")
    width = STORED[storage.dtype].itemsize
    if member is None or member.size != storage.length * width:
        size = "no" if member is None else f"{member.size}"
        raise CheckpointError(
            f"{path}: storage {shown(storage.key)} needs {storage.length * width} bytes, the "
            f"archive holds {size}; download it again"
        )
    count = 1
    expected = []  # strides of the same shape without gaps
    for length in reversed(tensor.shape):
        expected.append(count)
        count *= length
    contiguous = all(
        length == 1 or stride == plain
        for length, stride, plain in zip(
            tensor.shape, tensor.strides, reversed(expected), strict=True
        )
    )
    strides = None if contiguous or not count else tensor.strides
    offset = member.offset + tensor.offset * width
    return TensorInfo(tensor.shape, storage.dtype, count * width), Place(0, offset, strides)
