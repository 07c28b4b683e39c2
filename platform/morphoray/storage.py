"""One way to read and write bytes, tables and folders at local paths, file:// and s3:// URIs.

What lies in a zip archive is read in place, as `x.zip!/folder/file` in any of the three (archives.py).
A write is seen whole or not at all. Requests to object storage that fail for a passing reason (no connection,
a timeout, a 5xx answer) are repeated with exponential back-off; every other failure is raised at once.
Credentials come from where the AWS tools take them, and never enter a Storage, its pickle or a message.
"""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from morphoray import archives
from morphoray.errors import DataError, MissingObjectError, StorageError
from morphoray.s3 import (
    PART_BYTES,
    PART_THREADS,
    ObjectFile,
    S3Object,
    S3Requests,
    locate,
    split_archive,
)

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

FILE_THREADS = 8  # with PART_THREADS: at most 8 × 4 × 16 MiB in memory during a folder's transfer


def is_remote(uri: str) -> bool:
    """Whether the URI lies in object storage."""
    inside = split_archive(uri)
    return isinstance(locate(inside[0] if inside else uri), S3Object)


def join(uri: str, *parts: str) -> str:
    """The URI with parts below it, one slash between each."""
    return "/".join([(uri or ".").rstrip("/"), *filter(None, (part.strip("/") for part in parts))])


def absolute(uri: str) -> str:
    """The URI in a form that means the same in every working directory: local ones as absolute paths."""
    if inside := split_archive(uri):
        return join(absolute(inside[0]) + "!", inside[1])
    where = locate(uri)
    return str(where.absolute()) if isinstance(where, Path) else uri


@dataclass(frozen=True)
class Storage(S3Requests):
    """How to reach stored data; picklable and free of secrets, so that it may travel to any worker.

    endpoint_url and region default to AWS_ENDPOINT_URL and AWS_DEFAULT_REGION or the AWS profile. A request
    waits `timeout_s` for an answer and is repeated up to `retries` times, after 1, 2, 4, … at most 16 s
    (± 25 %): 47 s in all when connections are refused. None is repeated once 2 × timeout_s have passed.
    """

    def read_bytes(self, uri: str) -> bytes:
        """The whole content; MissingObjectError when there is none, DataError for a bad zip archive."""
        if inside := split_archive(uri):
            return archives.read(self, *inside)
        where = locate(uri)
        if isinstance(where, S3Object):
            return cast(bytes, self._call(uri, "get_object")["Body"])
        with _local_errors(uri):
            return where.read_bytes()

    def write_bytes(self, uri: str, data: "bytes | bytearray | memoryview | pa.Buffer") -> None:
        """Write or replace the content atomically; folders are made as needed."""
        where, view = locate(uri), memoryview(data)
        if isinstance(where, S3Object):
            self._put(uri, view.nbytes, lambda start, count: bytes(view[start : start + count]))
            return
        with _local_errors(uri), _replacing(where) as file:
            file.write(view)

    def open(self, uri: str) -> BinaryIO:
        """A seekable binary file for random access, as Parquet and zip readers want it."""
        if inside := split_archive(uri):
            return io.BytesIO(archives.read(self, *inside))
        where = locate(uri)
        if isinstance(where, S3Object):
            return cast(BinaryIO, io.BufferedReader(ObjectFile(self, uri), 256 * 2**10))
        with _local_errors(uri):
            return where.open("rb")

    def exists(self, uri: str) -> bool:
        """Whether there is an object, a file or a folder (in object storage: anything below the URI).

        Raises MissingObjectError when the very bucket is missing.
        """
        if inside := split_archive(uri):
            with contextlib.suppress(MissingObjectError):
                return archives.opened(self, inside[0]).exists(inside[1])
            return False
        where = locate(uri)
        if isinstance(where, Path):
            with contextlib.suppress(MissingObjectError), _local_errors(uri):
                return where.exists()
            return False
        with contextlib.suppress(MissingObjectError):
            if where.key.strip("/"):
                self._call(uri, "head_object")
                return True
        return next(self._names(uri, recursive=True, page=1), None) is not None

    def size(self, uri: str) -> int:
        """Bytes of one object or file."""
        if inside := split_archive(uri):
            return archives.opened(self, inside[0]).size(inside[1])
        where = locate(uri)
        if isinstance(where, S3Object):
            return int(self._call(uri, "head_object")["ContentLength"])
        with _local_errors(uri):
            return where.stat().st_size

    def delete(self, uri: str, recursive: bool = False) -> None:
        """Delete an object or file, with `recursive` also all below it; what is not there is no error."""
        where = locate(uri)
        is_root = where == Path(where.anchor) if isinstance(where, Path) else not where.key.strip("/")
        if is_root:
            raise StorageError(f"{uri}: refusing to delete a whole bucket or disk. Name a folder in it.")
        if isinstance(where, Path):
            with _local_errors(uri):
                if recursive and where.is_dir() and not where.is_symlink():
                    shutil.rmtree(where)
                else:
                    where.unlink(missing_ok=True)
        elif not recursive:
            self._call(uri, "delete_object")
        else:
            below = where.key.rstrip("/") + "/"
            keys = [where.key, *(below + name for name in self._names(uri, recursive=True))]
            for start in range(0, len(keys), 1000):  # S3 takes 1000 at once
                doomed = {"Objects": [{"Key": key} for key in keys[start : start + 1000]], "Quiet": True}
                for left in self._call(uri, "delete_objects", Key=None, Delete=doomed).get("Errors", []):
                    raise StorageError(f"{uri}: {left['Key']!r} was not deleted: {left.get('Message')}.")

    def list_files(self, uri: str, suffix: str = "", recursive: bool = False) -> list[str]:
        """Sorted URIs of a folder's files, unfinished writes left out; empty when there is no such folder."""
        names: list[str] = []
        if inside := split_archive(uri):
            names = self._names_in_archive(*inside, recursive)
        elif isinstance(where := locate(uri), S3Object):
            names = list(self._names(uri, recursive))
        else:
            with contextlib.suppress(MissingObjectError), _local_errors(uri):
                names = [path.relative_to(where).as_posix() for path in _walk(where, recursive)]
        return sorted(join(uri, name) for name in names if name.endswith(suffix))

    def list_folders(self, uri: str) -> list[str]:
        """Sorted URIs of the folders in a folder; empty when there is no such folder."""
        where = locate(uri)
        if isinstance(where, S3Object):
            names = list(self._folders(uri))
        else:
            with _local_errors(uri):
                names = [path.name for path in where.glob("*") if path.is_dir()]
        return sorted(join(uri, name) for name in names)

    def _names_in_archive(self, archive: str, folder: str, recursive: bool) -> list[str]:
        try:
            return archives.opened(self, archive).names(folder, recursive)
        except MissingObjectError:
            return []

    def upload_dir(self, local: str | Path, uri: str) -> None:
        """Copy every file below a local folder to the URI; each of them is atomic."""
        root = Path(local)
        if not root.is_dir():
            raise MissingObjectError(f"{root}: there is no such folder to copy to {uri}. Check the path.")
        names = [path.relative_to(root).as_posix() for path in _walk(root, recursive=True)]
        with ThreadPoolExecutor(FILE_THREADS) as pool:
            list(pool.map(lambda name: self._upload(root / name, join(uri, name)), names))

    def download_dir(self, uri: str, local: str | Path) -> Path:
        """Copy every file below the URI to a local folder and return it; each of them is atomic."""
        target, where = Path(local), locate(uri)
        if isinstance(where, Path):
            self.upload_dir(where, str(target))
            return target
        names = list(self._names(uri, recursive=True))
        if not names:
            raise MissingObjectError(f"{uri}: there are no objects below it. Check the URI.")
        for name in names:
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise StorageError(f"{uri}: {name!r} would be written outside {target}. Rename the object.")
        with ThreadPoolExecutor(FILE_THREADS) as pool:
            list(pool.map(lambda name: self._download(f"{uri.rstrip('/')}/{name}", target / name), names))
        return target

    def _upload(self, path: Path, uri: str) -> None:
        where = locate(uri)
        with _local_errors(str(path)), path.open("rb") as source:
            if isinstance(where, Path):
                with _replacing(where) as file:
                    shutil.copyfileobj(source, file)
            else:
                size = os.fstat(source.fileno()).st_size
                self._put(uri, size, lambda start, count: os.pread(source.fileno(), count, start))

    def _download(self, uri: str, target: Path) -> None:
        with _local_errors(str(target)), ObjectFile(self, uri) as source, _replacing(target) as file:

            def copy(start: int) -> int:
                return os.pwrite(file.fileno(), source.range(start, PART_BYTES), start)

            with ThreadPoolExecutor(PART_THREADS) as pool:
                copied = sum(pool.map(copy, range(0, source.size, PART_BYTES)))
            if copied != source.size:
                raise OSError(f"found room for {copied} of {source.size} bytes")

    def read_table(self, uri: str, columns: list[str] | None = None) -> "pa.Table":
        """A Parquet file as a table; raises DataError when it is not Parquet or lacks one of `columns`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        source = pa.BufferReader(self.read_bytes(uri)) if columns is None else self.open(uri)
        try:
            with source, pq.ParquetFile(source, pre_buffer=True) as file:
                names = file.schema_arrow.names
                if twice := sorted({name for name in names if names.count(name) > 1}):
                    raise DataError(f"{uri}: found the columns {twice} more than once, expected each once")
                if lacking := set(columns or []) - set(names):
                    raise DataError(f"{uri}: found no {sorted(lacking)} among {names}. Make the table again.")
                return file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{uri}: expected a Parquet file, but {error}. Make the table again.") from error

    def write_table(self, uri: str, table: "pa.Table") -> None:
        """Write a table as one Parquet file (zstd), atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(uri, sink.getvalue())

    def read_text(self, uri: str) -> str:
        """UTF-8 text, with or without a byte-order mark; raises DataError when it is not."""
        try:
            text = self.read_bytes(uri).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{uri}: expected UTF-8 text, but {error}. Convert the file to UTF-8.") from error
        if "\0" in text:
            raise DataError(
                f"{uri}: expected UTF-8 text, found a null character: UTF-16? Convert the file to UTF-8."
            )
        return text

    def write_text(self, uri: str, text: str) -> None:
        """Write UTF-8 text atomically."""
        self.write_bytes(uri, text.encode())

    def read_json(self, uri: str) -> Any:
        """The value of a JSON file; raises DataError when it is not JSON."""
        try:
            return json.loads(self.read_text(uri))
        except (ValueError, RecursionError) as error:  # ValueError also for a number of 5000 digits
            raise DataError(f"{uri}: expected JSON, but {error}. Make the file again.") from error

    def write_json(self, uri: str, value: Any) -> None:
        """Write a JSON-serialisable value, indented, atomically."""
        self.write_text(uri, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_NO_SUCH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise MissingObjectError(f"{uri!r}: there is no such file: {error}. Check the path.") from error
    except OSError as error:
        if error.errno in _NO_SUCH:
            raise MissingObjectError(f"{uri}: there is no such file. Check the path.") from error
        if error.errno == errno.EISDIR:
            raise StorageError(f"{uri}: it is a folder, expected a file. Check the path.") from error
        why = error.strerror or str(error)
        raise StorageError(f"{uri}: {why}. Check the path, its permissions and the space left.") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the path's place, synced, when the block ends well, and disappears otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:64]}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _walk(folder: Path, recursive: bool) -> list[Path]:
    """The files in a folder, without those that `_replacing` is writing or left when it was killed."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return [path for path in found if path.is_file() and not (path.name[0] == "." and path.suffix == ".tmp")]
