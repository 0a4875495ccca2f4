"""Interprets the few pickle instructions that a table of tensors needs; refuses others by name.

Nothing is imported and nothing is called: a global is only a name, looked up among the rebuilders
here. Not a subclass of pickle.Unpickler, because one instruction can make that allocate gigabytes
and nested keys can make it hang.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

from wanpipe.errors import CheckpointError
from wanpipe.weights.tensors import MAX_AXES

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
GLOBALS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.storage.UntypedStorage",
    *(f"torch.{name}" for name in STORAGES),
}
CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}  # fmt: skip
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Global:
    """A name that the pickle refers to; one of GLOBALS."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A flat run of `length` numbers, in the archive member `data/<key>`."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Malformed(Exception):
    """What is wrong with a pickle, without the file's name."""


def interpret(data: bytes, subject: str) -> Any:
    """Give what the pickle describes: dicts, lists, tuples, strings, numbers and StoredTensors.

    Raises CheckpointError that names `subject` and what was refused; nothing ever runs.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except Malformed as error:
        raise CheckpointError(f"{subject} {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{subject} holds a damaged pickle: {error}") from error
    raise CheckpointError(f"{subject} holds a pickle without an end")


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one instruction."""
        if opcode in ("PROTO", "FRAME"):
            return
        if opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in LITERALS:
            self.stack.append(argument)
        elif opcode in TUPLES:
            self.stack.append(tuple(self.take(TUPLES[opcode])))
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif opcode in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise Malformed("holds a damaged pickle: it recalls what it never stored")
            self.stack.append(self.memo[argument])
        else:
            action = getattr(self, f"do_{opcode.lower()}", None)
            if action is None:
                raise Malformed(
                    f"holds the pickle instruction {opcode}, which no table of tensors needs"
                )
            action(argument)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed("holds a damaged pickle: its stack is empty")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def take(self, count: int) -> list[Any]:
        """Pop `count` values, in the order they were pushed."""
        return [self.pop() for _ in range(count)][::-1]

    def since_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        if not self.marks:
            raise Malformed("holds a damaged pickle: it has no mark")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def do_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def do_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def do_append(self, _: Any) -> None:
        self.append([self.pop()])

    def do_appends(self, _: Any) -> None:
        self.append(self.since_mark())

    def do_setitem(self, _: Any) -> None:
        self.store(self.take(2))

    def do_setitems(self, _: Any) -> None:
        self.store(self.since_mark())

    def do_global(self, argument: str) -> None:
        self.refer(argument.replace(" ", ".", 1))

    def do_stack_global(self, _: Any) -> None:
        module, name = self.take(2)
        self.refer(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?")

    def do_reduce(self, _: Any) -> None:
        function, arguments = self.take(2)
        self.stack.append(rebuild(function, arguments))

    def do_build(self, _: Any) -> None:
        self.pop()  # the module versions that state_dict hangs on its OrderedDict
        if not isinstance(self.top(), dict):
            raise Malformed("holds a pickle that sets the state of something other than a dict")

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(storage(self.pop()))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Malformed("holds a damaged pickle: it appends to something other than a list")
        target.extend(values)

    def store(self, pairs: list[Any]) -> None:
        target = self.top()
        # names only: a nested tuple as key takes exponential time to hash
        if not isinstance(target, dict) or len(pairs) % 2 or not all(map(_is_key, pairs[::2])):
            raise Malformed("holds a pickle with a dict whose keys are not names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def refer(self, name: str) -> None:
        if name not in GLOBALS:
            raise Malformed(f"refers to {name[:100]!r}, which builds no tensor; it was not run")
        self.stack.append(Global(name))


def _is_key(value: Any) -> bool:
    return isinstance(value, str | int)


def rebuild(function: Any, arguments: Any) -> Any:
    """Do what torch's rebuilder of this name would do."""
    name = function.name if isinstance(function, Global) else ""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
        case "torch._utils._rebuild_tensor_v2", (Storage() as source, offset, shape, strides, *_):
            return _view(source, offset, shape, strides)
    raise Malformed(
        f"holds a pickle that calls {name or 'something'} in an unknown way; it was not run"
    )


def storage(identity: Any) -> Storage:
    """Decode the persistent identity of a storage: ("storage", class, key, device, length)."""
    match identity:
        case "storage", Global(name=name), str(key), str(), int(length) if type(length) is int:
            dtype = STORAGES.get(name.rpartition(".")[2])
            if dtype and name.startswith("torch.") and length >= 0:
                return Storage(key, dtype, length)
    raise Malformed("holds a pickle that refers to something other than a torch storage")


def _view(source: Storage, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    numbers = (offset, *shape, *strides) if type(shape) is type(strides) is tuple else ("?",)
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise Malformed("holds a tensor whose offset, shape or strides are not counts")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise Malformed(f"holds a tensor of shape {shape[:9]} with {len(strides)} strides")
    count = 1
    for length in shape:
        count *= length
    last = offset + sum(
        (length - 1) * stride for length, stride in zip(shape, strides, strict=True)
    )
    # more numbers than its storage: zero strides would make any size out of nothing
    if count > source.length or (count and last >= source.length):
        raise Malformed(
            f"holds a tensor of shape {shape} that its storage of {source.length} cannot fill"
        )
    return StoredTensor(source, offset, shape, strides)
