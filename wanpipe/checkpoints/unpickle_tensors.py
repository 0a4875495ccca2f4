"""Lists the tensors of a torch checkpoint's pickle: stdin to JSON on stdout.

Run by `sandbox` as a child process: a pickle can nest keys that take for ever to hash, or that
overflow the stack, and nothing but the end of the process stops that. No name in a pickle is
imported and nothing of it runs. Needs the standard library alone. Knows no file: whether one holds
these numbers is for `torch_file` to check.
"""

import io
import json
import pickle
import pickletools
import sys
from typing import Any, NamedTuple

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "Float8_e4m3fnStorage": "F8_E4M3",
    "Float8_e5m2Storage": "F8_E5M2",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
}
ALLOWED_GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}" for name in STORAGES),
}
ALLOWED_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
}  # fmt: skip
WRAPPER_KEYS = ("state_dict", "model", "module")
MAX_AXES = 8  # of a tensor
MAX_NAME = 100  # characters of a storage's key, and of a name in an error


class Storage(NamedTuple):
    """A flat run of `length` numbers, in the archive member `data/<key>`."""

    key: str
    dtype: str
    length: int


class View(NamedTuple):
    """A strided view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


class Table(dict[Any, Any]):
    """An OrderedDict of the pickle."""

    def __setstate__(self, state: Any) -> None:
        """Leave out the versions of modules that `state_dict` hangs on it."""


class Global:
    """A name in the pickle; calling it builds what torch's function of this name would describe."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "collections.OrderedDict", ():
                return Table()
            case "torch._utils._rebuild_parameter", (View() as view, *_):
                return view
            case "torch._utils._rebuild_tensor_v2", (Storage(), offset, shape, strides, *_):
                if is_view(offset, shape, strides):
                    return View(arguments[0], offset, shape, strides)
                raise SystemExit("it has a tensor whose offset, shape or strides are not counts")
        raise SystemExit(f"it calls {self.name} in an unknown way; it was not run")


class RestrictedUnpickler(pickle.Unpickler):
    """Builds containers, strings, numbers and views of storages."""

    def find_class(self, module: str, name: str) -> Global:
        """Wrap one of the known names."""
        if f"{module}.{name}" not in ALLOWED_GLOBALS:
            full = f"{module}.{name}"[:MAX_NAME]
            raise SystemExit(f"it refers to {full!r}, which builds no tensor; it was not run")
        return Global(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> Storage:
        """Decode the identity of a storage: ("storage", class, key, device, length)."""
        match identity:
            case "storage", Global(name=name), str(key), str(), length if is_count(length):
                dtype = STORAGES.get(name.rpartition(".")[2])
                if dtype is not None and len(key) <= MAX_NAME:
                    return Storage(key, dtype, length)
        raise SystemExit("it refers to something other than a torch storage")


def is_count(value: Any) -> bool:
    """Whether this is a number of things."""
    return type(value) is int and 0 <= value < 1 << 62


def is_view(offset: Any, shape: Any, strides: Any) -> bool:
    """Whether these can be offset, shape and strides."""
    if not type(shape) is type(strides) is tuple:
        return False
    axes = len(strides) == len(shape) <= MAX_AXES
    return axes and all(map(is_count, (offset, *shape, *strides)))


def check_opcodes(data: bytes) -> None:
    """Refuse instructions that no table of tensors needs, and a memo larger than its pickle."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in ALLOWED_OPCODES:
            raise SystemExit(
                f"it has the pickle instruction {opcode.name}, which no table of tensors needs"
            )
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise SystemExit("it has a pickle whose memo takes more memory than the file")


def list_views(table: Any) -> list[list[Any]]:
    """Name the tensors of a table that is at the top or in one of the usual wrapping dicts."""
    for _ in WRAPPER_KEYS:
        inner = [table[key] for key in WRAPPER_KEYS if isinstance(table, dict) and key in table]
        table = inner[0] if inner and isinstance(inner[0], dict) else table
    if not isinstance(table, dict) or not table:
        raise SystemExit(f"it must be a table of tensors, is {type(table).__name__}")
    result = []
    for name, view in table.items():
        if not isinstance(name, str) or not isinstance(view, View):
            label = repr(name[:MAX_NAME]) if isinstance(name, str) else "what has no name"
            raise SystemExit(f"{label} must be a tensor, is {type(view).__name__}")
        storage, *numbers = view
        result.append([name, *storage, *numbers])
    return result


if __name__ == "__main__":
    pickled = sys.stdin.buffer.read()
    check_opcodes(pickled)
    json.dump(list_views(RestrictedUnpickler(io.BytesIO(pickled)).load()), sys.stdout)
