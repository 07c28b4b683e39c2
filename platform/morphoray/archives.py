"""Files inside zip archives, read in place: `x.zip!/folder/a.tif` in any storage, by range reads.

A process reads an archive's directory once and keeps the last ones that it used. Members come from others:
names that leave the archive, encryption, rare compression and zip bombs are refused with a reason.
Format: PKWARE's APPNOTE, as Python's zipfile reads it.
"""

import logging
import os
import re
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from morphoray.errors import DataError, MissingObjectError, PassingStorageError
from morphoray.s3 import ObjectFile, locate

if TYPE_CHECKING:
    from morphoray.storage import Storage

log = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 2**30
MAX_RATIO = 100  # of members above RATIO_FROM_BYTES; TIFFs of cells reach 10
RATIO_FROM_BYTES = 16 * 2**20
MAX_ARCHIVES = 64  # directories that a process keeps; BBBC021 has 55

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags: encryption, strong encryption, masked headers
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_SLACK = 256  # bytes read beyond a member, since its local extra field may be longer than the directory's


class Archive:
    """An archive's directory, and reads of its members; safe from several threads.

    Raises MissingObjectError when there is no such archive, DataError when it isn't a whole zip archive.
    """

    def __init__(self, storage: "Storage", uri: str) -> None:
        self.uri = uri
        self._storage = storage
        self._remote: ObjectFile | None = None
        with storage.open(uri) as file:
            if isinstance(file, BufferedReader) and isinstance(file.raw, ObjectFile):
                self._remote = file.raw
                self._size = file.raw.size
            else:
                self._size = os.fstat(file.fileno()).st_size
            self._state = _state(uri)
            try:
                with zipfile.ZipFile(file) as directory:
                    members = directory.infolist()
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
                raise DataError(
                    f"{uri}: no zip directory at the end of its {self._size} bytes ({error}): not a zip "
                    "archive, or a truncated one. Copy it again."
                ) from None
        self._refused: dict[str, str] = {}
        self._folders: dict[str, dict[str, zipfile.ZipInfo]] = {"": {}}
        for member in members:
            self._add(member)
        if self._refused:
            name, reason = next(iter(self._refused.items()))
            log.warning("%s: %d members refused, such as %r: %s", uri, len(self._refused), name, reason)

    def is_current(self) -> bool:
        """Whether a local archive is the file that was opened; object storage says so at each read."""
        return self._state == _state(self.uri)

    def _add(self, member: zipfile.ZipInfo) -> None:
        path = member.filename.rstrip("/")
        if reason := _name_problem(member.orig_filename):
            self._refused[path] = reason
            return
        folder, _, name = (path, "", "") if member.is_dir() else path.rpartition("/")
        if folder not in self._folders:
            for parent in (folder, *map(str, PurePosixPath(folder).parents)):
                self._folders.setdefault("" if parent == "." else parent, {})
        if name in self._folders[folder]:
            self._refused[path] = "its name is in the archive twice"
            del self._folders[folder][name]
        elif name and path not in self._refused:
            self._folders[folder][name] = member

    def names(self, folder: str, recursive: bool) -> list[str]:
        """What follows FOLDER/ in the names of the files in it; empty when there is no such folder."""
        if not recursive:
            return list(self._folders.get(folder, {}))
        start = f"{folder}/" if folder else ""
        below = [key for key in self._folders if key == folder or key.startswith(start)]
        return [
            f"{key}/{name}".removeprefix("/")[len(start) :] for key in below for name in self._folders[key]
        ]

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        folder, _, name = path.rpartition("/")
        return path in self._folders or name in self._folders.get(folder, {})

    def size(self, path: str) -> int:
        """The bytes of a file, as the archive declares them."""
        return self._find(path).file_size

    def read(self, path: str) -> bytes:
        """A file's content. Raises DataError with the reason when it can't be had."""
        member = self._find(path)
        where = f"{self.uri}!/{path}"
        if problem := _member_problem(member):
            raise DataError(f"{where}: {problem}")
        packed = self._packed(member, where)
        try:
            with zipfile.ZipExtFile(BytesIO(packed), "r", member) as file:
                data = file.read(member.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"{where}: corrupt in the archive: {error or 'its data end early'}") from None
        if len(data) != member.file_size:
            raise DataError(f"{where}: corrupt in the archive: {len(data)} bytes of {member.file_size}")
        return data

    def _find(self, path: str) -> zipfile.ZipInfo:
        if path in self._refused:
            raise DataError(f"{self.uri}!/{path}: refused: {self._refused[path]}")
        folder, _, name = path.rpartition("/")
        try:
            return self._folders[folder][name]
        except KeyError:
            raise MissingObjectError(f"{self.uri}!/{path}: there is no such file in the archive.") from None

    def _packed(self, member: zipfile.ZipInfo, where: str) -> bytes:
        """A member's compressed bytes: one range read, or two where its local header is long."""
        start = max(member.header_offset, 0)
        expected = _LOCAL_HEADER.size + len(member.orig_filename.encode()) + len(member.extra) + _SLACK
        data = self._range(start, expected + member.compress_size)
        if len(data) < _LOCAL_HEADER.size or data[:4] != b"PK\x03\x04":
            raise DataError(f"{where}: corrupt in the archive: no file header where its directory says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(data)
        begin = _LOCAL_HEADER.size + name_bytes + extra_bytes
        end = begin + member.compress_size
        if start + end > self._size:
            raise DataError(f"{where}: corrupt in the archive: it reaches beyond the archive's end")
        if end > len(data):
            data += self._range(start + len(data), end - len(data))
        return data[begin:end]

    def _range(self, start: int, count: int) -> bytes:
        count = min(count, self._size - start)
        if count <= 0:
            return b""
        if self._remote is not None:
            return self._remote.range(start, count)
        with self._storage.open(self.uri) as file:
            file.seek(start)
            return file.read(count)


def _name_problem(name: str) -> str:
    if "\\" in name or "\0" in name:
        return "a backslash or a null in its name"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute name"
    return "'..' or an empty part in its name" if {"..", ".", ""} & {*name.rstrip("/").split("/")} else ""


def _member_problem(member: zipfile.ZipInfo) -> str:
    """Why a member is not read, or nothing."""
    size, packed = member.file_size, member.compress_size
    if member.flag_bits & _ENCRYPTED:
        return "encrypted in the archive. Decrypt it first."
    if member.compress_type not in _METHODS:
        return f"compression method {member.compress_type}, expected stored or deflated. Pack it again."
    if size > MAX_MEMBER_BYTES:
        return f"declares {size} bytes, more than the {MAX_MEMBER_BYTES} that are read: a zip bomb?"
    if size > RATIO_FROM_BYTES and size > MAX_RATIO * packed:
        return f"declares {size} bytes out of {packed}, more than {MAX_RATIO} times: a zip bomb?"
    return f"{packed} bytes packed, more than can hold {size}" if packed > 2 * size + 2**16 else ""


def _state(uri: str) -> tuple[int, ...]:
    """What changes when a local archive is replaced; constant for object storage."""
    where = locate(uri)
    if not isinstance(where, Path):
        return ()
    try:
        found = where.stat()
    except OSError:
        return (-1,)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


class _Slot:
    """One archive's place in the cache; its lock lets one thread read the directory while others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.archive: Archive | None = None


_slots: OrderedDict[tuple["Storage", str], _Slot] = OrderedDict()
_lock = threading.Lock()


def opened(storage: "Storage", uri: str) -> Archive:
    """The archive at the URI, from this process's cache when it has been read before."""
    with _lock:
        slot = _slots.setdefault((storage, uri), _Slot())
        _slots.move_to_end((storage, uri))
        while len(_slots) > MAX_ARCHIVES:
            _slots.popitem(last=False)
    with slot.lock:
        if slot.archive is None or not slot.archive.is_current():
            slot.archive = Archive(storage, uri)
        return slot.archive


def read(storage: "Storage", archive: str, path: str) -> bytes:
    """A member's content; when the archive was replaced meanwhile, its directory is forgotten."""
    try:
        return opened(storage, archive).read(path)
    except PassingStorageError:
        with _lock:
            _slots.pop((storage, archive), None)
        raise
