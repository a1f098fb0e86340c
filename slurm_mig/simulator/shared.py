"""The simulated library as a file that any program can load as libnvidia-ml.so.1.

`build` compiles data/nvml.c for one machine; `serve` is the helper of one process that loaded
it: it does each call on the `Library`, with buffers of its own for what pointers point to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NotPermitted, SimulatorFault
from slurm_mig.simulator import abi
from slurm_mig.simulator.library import MESSAGES, Library
from slurm_mig.simulator.signatures import SIGNATURES, UNTOLD, words_of
from slurm_mig.system.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "libnvidia-ml.so.1"

#: Functions by number; the texts of errors need no session.
FUNCTIONS: Final = [name for name in (*SIGNATURES, *UNTOLD) if name != "nvmlErrorString"]

#: Elements of an array whose room its call does not tell; a GPU has 8 instances.
ROOM: Final = 64
#: And of one whose room it tells, at most.
MOST: Final = 65536

_LETTERS: Final = "husUHTC"
_SIZES: Final = {"u": 4, "U": 4, "C": 4, "h": 8, "H": 8}


def kind_of(word: str) -> tuple[str, int]:
    """Letter and size in bytes of an argument, as data/nvml.c has them."""
    if word in _LETTERS:
        return word, _SIZES.get(word, 0)
    name = word.removesuffix("[]")
    return ("S" if name == word else "A"), ctypes.sizeof(getattr(abi, name))


# -- building --------------------------------------------------------------------------


def build(machine: Path) -> Path:
    """The directory with the library of a machine, compiled where it is not there or is old.

    SimulatorFault without a compiler; NotPermitted for a user where root has not built it.
    """
    header = functions_h(machine)
    source = resources.files("slurm_mig").joinpath("data/nvml.c").read_text("utf-8")
    digest = sha256(f"{header}{source}".encode()).hexdigest()
    directory = machine / "lib"
    mark = directory / "digest"
    if not (mark.exists() and mark.read_text("ascii") == digest):
        if os.geteuid() != 0:
            raise NotPermitted(f"{directory / NAME} is not built yet", remedy="run it once as root")
        directory.mkdir(mode=0o755, exist_ok=True)
        replace_file(directory / NAME, _compiled(source, header), mode=0o755)
        replace_file(mark, digest, mode=0o644)
    return directory


def _compiled(source: str, header: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "nvml.c").write_text(source, "utf-8")
        (place / "functions.h").write_text(header, "utf-8")
        flags = ["-shared", "-fPIC", "-O2", "-pthread", f"-Wl,-soname,{NAME}", "-I", scratch]
        try:
            done = subprocess.run(
                ["cc", *flags, "-o", NAME, "nvml.c"],  # noqa: S607  # whichever compiler there is
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise SimulatorFault(
                "no C compiler (cc) here", remedy="apt-get install gcc libc6-dev"
            ) from None
        if done.returncode:
            raise SimulatorFault(f"cc: {done.stderr.strip()}")
        return (place / NAME).read_bytes()


def functions_h(machine: Path) -> str:
    """The part of the C source that follows from the signatures, and from where this is."""
    package = Path(__file__).parents[2]
    program = (
        f"import sys; sys.path.append({str(package)!r}); "
        "from slurm_mig.simulator.shared import main; main()"
    )
    lines = [
        f"#define PYTHON {_c_string(sys.executable)}",
        f"#define PROGRAM {_c_string(program)}",
        f"#define MACHINE {_c_string(str(machine.absolute()))}",
        *(
            f"#define {word} {FUNCTIONS.index(name)}"
            for word, name in (
                ("INIT", "nvmlInit_v2"),
                ("INIT_WITH_FLAGS", "nvmlInitWithFlags"),
                ("SHUTDOWN", "nvmlShutdown"),
            )
        ),
        "static const struct { int code; const char *text; } TEXTS[] = {",
        *(f"    {{{code}, {_c_string(text.decode())}}}," for code, text in MESSAGES.items()),
        "};",
        "static const struct function FUNCTIONS[] = {",
        *(f"    {_table_row(name)}," for name in FUNCTIONS),
        "};",
        *map(_function, range(len(FUNCTIONS))),
    ]
    return "\n".join(lines) + "\n"


def _c_string(text: str) -> str:
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return f'"{escaped}"'


def _table_row(name: str) -> str:
    kinds = [kind_of(word) for word in words_of(name)]
    inner = ", ".join(f"{{'{letter}', {size}}}" for letter, size in kinds) or "{0, 0}"
    return f"{{{len(kinds)}, {{{inner}}}}}"


def _function(number: int) -> str:
    words = words_of(FUNCTIONS[number])
    types = {"u": ("uint32_t", "u"), "s": ("const char *", "s")}
    each = [types.get(word, ("void *", "p")) for word in words]
    parameters = ", ".join(f"{kind} a{place}" for place, (kind, _) in enumerate(each)) or "void"
    values = ", ".join(f"{{.{member} = a{place}}}" for place, (_, member) in enumerate(each))
    return (
        f"int {FUNCTIONS[number]}({parameters}) {{ "
        f"union word words[] = {{{values or '{.p = 0}'}}}; return ask({number}, words); }}"
    )


# -- serving ---------------------------------------------------------------------------


def main() -> None:
    """The helper: its socket is its standard input, the machine its argument."""
    sock = socket.socket(fileno=0)
    if os.fork():
        # Whoever started this waits for it, and goes on.
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sock, Library(Path(sys.argv[1])))


def serve(sock: socket.socket, library: Library) -> None:
    """Answer one process until it closes its end."""
    with sock, sock.makefile("rb") as stream:
        while head := stream.read(4):
            name = FUNCTIONS[int.from_bytes(head, sys.byteorder)]
            sock.sendall(_answered(library, name, stream))


def _answered(library: Library, name: str, stream: Any) -> bytes:
    words = words_of(name)
    values = [_read(word, stream) for word in words]
    buffers = list(_buffers(words, values))
    code: int = getattr(library, name)(*map(_pointer, buffers))
    written = b"".join(
        len(data).to_bytes(4, sys.byteorder) + data
        for place, word in enumerate(words)
        if word not in ("h", "u", "s")
        for data in [_written(place, words, buffers, code=code)]
    )
    return code.to_bytes(4, sys.byteorder, signed=True) + written


def _read(word: str, stream: Any) -> Any:
    """What came for an argument: bytes to begin with, a number, or whether it is there."""
    letter, size = kind_of(word)
    if letter in ("U", "H", "T"):
        return None
    if letter == "s":
        return stream.read(int.from_bytes(stream.read(4), sys.byteorder))
    data = stream.read(1 if letter == "A" else size)
    return data if letter == "S" else int.from_bytes(data, sys.byteorder)


def _buffers(words: list[str], values: list[Any]) -> Iterator[Any]:
    """Arguments for the library's function, in memory of this process."""
    for place, (word, value) in enumerate(zip(words, values, strict=True)):
        letter, size = kind_of(word)
        if letter in ("h", "u", "s"):
            yield value
        elif letter == "T":
            yield ctypes.create_string_buffer(max(1, min(values[place + 1], MOST)))
        elif letter == "A":
            counts = [number for number, other in zip(values, words, strict=True) if other == "C"]
            room = min(max(ROOM, *counts), MOST)
            yield ctypes.create_string_buffer(room * size) if value else None
        elif letter == "C":
            yield ctypes.c_uint(min(value, MOST))
        else:
            yield ctypes.create_string_buffer(value or bytes(size), size)


def _pointer(value: Any) -> Any:
    """An argument as the function takes it: memory by its address."""
    return ctypes.addressof(value) if isinstance(value, (ctypes.Array, ctypes.c_uint)) else value


def _written(place: int, words: list[str], buffers: list[Any], *, code: int) -> bytes:
    """What a pointer's target holds now; of an array what the count says, and only at success."""
    letter, size = kind_of(words[place])
    buffer = buffers[place]
    if letter == "C":
        return bytes(buffer)
    if letter == "A":
        count = buffers[words.index("C")].value
        return b"" if code or buffer is None else bytes(buffer.raw[: count * size])
    if letter == "T":
        return b"" if code else bytes(buffer.value) + b"\0"
    return bytes(buffer.raw)
