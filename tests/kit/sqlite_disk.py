"""What SQLite tells the disk: each write, cut, sync and removal, in order.

SQLite reaches files through a table of functions (vfs.html). Here the entries of
the default table that change files are replaced for a while by ones that note the
call and then do it. The notes say what a power cut may leave: what was synced
stays, of everything after it any part may be lost. The `-shm` file does not count;
SQLite never syncs it and makes it anew.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: sqlite3_io_methods, version 3: its version, then 18 functions (c3ref/io_methods.html).
_IO_METHODS: Final = 19
_WRITE, _TRUNCATE, _SYNC = 3, 4, 5

_XWRITE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
)
_XTRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_XSYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_XOPEN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_XDELETE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)


_OPEN_DIRECTORY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SET_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_GET_CALL = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, version 3 (c3ref/vfs.html)."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("delete", ctypes.c_void_p),
        ("others", ctypes.c_void_p * 11),
        ("set_system_call", ctypes.c_void_p),
        ("get_system_call", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Change:
    """One call: `write` at an offset, `truncate` to a size, `sync`, `delete`, or `directory`.

    The last is the sync of the directory, by which SQLite makes the name of a new
    WAL safe, and with it every removal before.
    """

    kind: str
    file: str
    at: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """The notes of one session."""

    changes: list[Change] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)
    #: Functions and tables that SQLite may still call or read.
    _alive: list[Any] = field(default_factory=list)

    def opened(self, file: int, name: str) -> None:
        """Put our functions into a fresh file's table."""
        self._names[file] = Path(name).name
        methods = ctypes.cast(file, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p * _IO_METHODS)))
        table = (ctypes.c_void_p * _IO_METHODS)(*methods.contents.contents)
        for place, function in (
            (_WRITE, _XWRITE(self._writer(_XWRITE(table[_WRITE] or 0)))),
            (_TRUNCATE, _XTRUNCATE(self._truncater(_XTRUNCATE(table[_TRUNCATE] or 0)))),
            (_SYNC, _XSYNC(self._syncer(_XSYNC(table[_SYNC] or 0)))),
        ):
            self._alive.append(function)
            table[place] = ctypes.cast(function, ctypes.c_void_p).value
        self._alive.append(table)
        ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.addressof(table)

    def _writer(self, real: Any) -> Any:
        def write(file: int, data: int, size: int, at: int) -> int:
            text = ctypes.string_at(data, size)
            self.changes.append(Change("write", self._names[file], at, text))
            return int(real(file, data, size, at))

        return write

    def _truncater(self, real: Any) -> Any:
        def truncate(file: int, size: int) -> int:
            self.changes.append(Change("truncate", self._names[file], size))
            return int(real(file, size))

        return truncate

    def _syncer(self, real: Any) -> Any:
        def sync(file: int, flags: int) -> int:
            code = int(real(file, flags))
            self.changes.append(Change("sync", self._names[file]))
            return code

        return sync


@contextmanager
def watched() -> Iterator[Disk]:
    """Note what SQLite does to files in this block; OSError where that cannot be seen."""
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3") or "libsqlite3.so.0")
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    vfs = library.sqlite3_vfs_find(None).contents
    real_open, real_delete = vfs.open, vfs.delete
    disk = Disk()

    def open_(table: int, name: int | None, file: int, flags: int, out: int) -> int:
        # SQLite keeps the very pointer: the name is handed on, not a copy of it.
        code = int(_XOPEN(real_open)(table, name, file, flags, out))
        if code == 0 and name:
            disk.opened(file, ctypes.string_at(name).decode())
        return code

    def delete(table: int, name: bytes, synced: int) -> int:
        disk.changes.append(Change("delete", Path(name.decode()).name))
        return int(_XDELETE(real_delete)(table, name, synced))

    real_directory = _GET_CALL(vfs.get_system_call)(ctypes.addressof(vfs), b"openDirectory")

    def open_directory(name: bytes, out: int) -> int:
        # SQLite opens a directory for one thing: to sync it.
        disk.changes.append(Change("directory", Path(name.decode()).name))
        return int(_OPEN_DIRECTORY(real_directory)(name, out))

    ours = (_XOPEN(open_), _XDELETE(delete), _OPEN_DIRECTORY(open_directory))
    set_call = _SET_CALL(vfs.set_system_call)
    vfs.open = ctypes.cast(ours[0], ctypes.c_void_p).value
    vfs.delete = ctypes.cast(ours[1], ctypes.c_void_p).value
    set_call(ctypes.addressof(vfs), b"openDirectory", ctypes.cast(ours[2], ctypes.c_void_p))
    try:
        _probe(disk)
        yield disk
    finally:
        set_call(ctypes.addressof(vfs), b"openDirectory", real_directory)
        vfs.open, vfs.delete = real_open, real_delete


def _probe(disk: Disk) -> None:
    with (
        tempfile.TemporaryDirectory() as aside,
        closing(sqlite3.connect(f"{aside}/probe.db")) as db,
    ):
        db.execute("CREATE TABLE probe (x)")
    if not disk.changes:
        raise OSError("this Python has an SQLite of its own, whose functions cannot be reached")
    disk.changes.clear()


# -- what a power cut may leave -----------------------------------------------------------

Image = dict[str, bytes]


def _apply(image: Image, change: Change) -> None:
    old = image.get(change.file, b"")
    if change.kind == "write":
        old = old.ljust(change.at, b"\0")
        image[change.file] = old[: change.at] + change.data + old[change.at + len(change.data) :]
    elif change.kind == "truncate":
        image[change.file] = old[: change.at]
    elif change.kind == "delete":
        image.pop(change.file, None)


def _torn(change: Change, size: int) -> Change:
    return Change("write", change.file, change.at, change.data[:size])


def images(changes: list[Change]) -> Iterator[Image]:
    """Files as a power cut right after these calls may leave them.

    What was synced is there. Of the calls since: all, none, each beginning, each
    beginning with half of the next write (cut at a sector and anywhere), all but
    one, one alone: disks write in the order they like.
    """
    durable: Image = {}
    pending: list[Change] = []
    for change in changes:
        if change.kind == "sync":
            for waiting in pending:
                if waiting.file == change.file:
                    _apply(durable, waiting)
            pending = [waiting for waiting in pending if waiting.file != change.file]
        elif change.kind == "directory":
            pending = _names_synced(durable, pending)
        else:
            pending.append(change)
    everything = range(len(pending))
    choices: list[list[Change]] = [pending[:count] for count in range(len(pending) + 1)]
    choices += [[pending[n] for n in everything if n != lost] for lost in everything]
    choices += [[pending[kept]] for kept in everything]
    for count, change in enumerate(pending):
        if change.kind == "write":
            sizes = {len(change.data) // 2, len(change.data) // 1024 * 512, len(change.data) - 1}
            choices += [[*pending[:count], _torn(change, size)] for size in sizes if size]
    for choice in choices:
        image = dict(durable)
        for change in _possible(pending, choice):
            _apply(image, change)
        yield image


def _names_synced(durable: Image, pending: list[Change]) -> list[Change]:
    """What still waits once removals are safe: not what was written to what is removed."""
    left: list[Change] = []
    for change in pending:
        if change.kind == "delete":
            durable.pop(change.file, None)
            left = [waiting for waiting in left if waiting.file != change.file]
        else:
            left.append(change)
    return left


def _possible(pending: list[Change], choice: list[Change]) -> Iterator[Change]:
    """Without a removal that was lost, what went to the new file of that name has none."""
    hidden = {
        change.file: place
        for place, change in reversed(list(enumerate(pending)))
        if change.kind == "delete" and change not in choice
    }
    for change in choice:
        place = pending.index(change) if change in pending else len(pending)
        if change.file not in hidden or place < hidden[change.file]:
            yield change
