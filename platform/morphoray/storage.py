"""One way to read and write bytes, tables and folders at local paths, file:// and s3:// URIs.

A write is seen whole or not at all. Requests to object storage that fail for a passing reason (no connection,
a timeout, a 5xx answer) are repeated with exponential back-off; every other failure is raised at once.
Credentials come from where the AWS tools take them, and never enter a Storage, its pickle or a message.
"""

import contextlib
import io
import json
import logging
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from morphoray.errors import DataError, MissingObjectError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20  # objects above two parts travel in parts, each repeated on its own
FILE_THREADS, PART_THREADS = 8, 4  # at most 8 × 4 × 16 MiB in memory during a folder's transfer
MAX_BACKOFF_S = 16.0
# HTTP statuses, S3's codes, and names of botocore's, aiohttp's and built-in exceptions or their bases
DENIED = {"401", "403", "ExpiredToken", "InvalidToken", "NoCredentialsError", "PartialCredentialsError"}
PASSING = {"429", "500", "502", "503", "504", "RequestTimeout", "XAmzContentSHA256Mismatch"}
PASSING |= {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
}
PASSING |= {"ClientPayloadError", "ClientOSError", "ServerConnectionError"}


class _Object(NamedTuple):
    """An S3 bucket and a key in it; the key is empty for the bucket itself."""

    bucket: str
    key: str


def _locate(uri: str) -> Path | _Object:
    scheme, separator, rest = str(uri).partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        parts = urlsplit(uri)
        if parts.netloc in ("", "localhost"):
            return Path(unquote(parts.path))
        raise StorageError(f"{uri}: found host {parts.netloc!r}, expected file:///absolute/path.")
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if bucket:
            return _Object(bucket, key)
        raise StorageError(f"{uri}: found no bucket, expected s3://bucket/key.")
    raise StorageError(f"{uri}: unknown scheme {scheme!r}, expected a local path, file:// or s3://.")


def is_remote(uri: str) -> bool:
    """Whether the URI lies in object storage."""
    return isinstance(_locate(uri), _Object)


def join(uri: str, *parts: str) -> str:
    """The URI with parts below it, one slash between each."""
    return "/".join([(uri or ".").rstrip("/"), *filter(None, (part.strip("/") for part in parts))])


def absolute(uri: str) -> str:
    """The URI in a form that means the same in every working directory: local ones as absolute paths."""
    where = _locate(uri)
    return str(where.absolute()) if isinstance(where, Path) else uri


@dataclass(frozen=True)
class Storage:
    """How to reach stored data; picklable and free of secrets, so that it may travel to any worker.

    endpoint_url and region default to AWS_ENDPOINT_URL and AWS_DEFAULT_REGION or the AWS profile. A request
    waits `timeout_s` for an answer and is repeated up to `retries` times, after 1, 2, 4, … at most 16 s
    (± 25 %): 47 s in all when connections are refused. None is repeated once 2 × timeout_s have passed.
    """

    endpoint_url: str | None = None
    anonymous: bool = False
    region: str | None = None
    retries: int = 6
    timeout_s: float = 60

    def read_bytes(self, uri: str) -> bytes:
        """The whole content; raises MissingObjectError when there is none."""
        where = _locate(uri)
        if isinstance(where, _Object):
            return cast(bytes, self._call(uri, "get_object")["Body"])
        with _local_errors(uri):
            return where.read_bytes()

    def write_bytes(self, uri: str, data: "bytes | bytearray | memoryview | pa.Buffer") -> None:
        """Write or replace the content atomically; folders are made as needed."""
        where, view = _locate(uri), memoryview(data)
        if isinstance(where, _Object):
            self._put(uri, view.nbytes, lambda start, count: bytes(view[start : start + count]))
            return
        with _local_errors(uri), _replacing(where) as file:
            file.write(view)

    def open(self, uri: str) -> BinaryIO:
        """A seekable binary file for random access, as Parquet and zip readers want it."""
        where = _locate(uri)
        if isinstance(where, _Object):
            return cast(BinaryIO, io.BufferedReader(_ObjectFile(self, uri), 256 * 2**10))
        with _local_errors(uri):
            return where.open("rb")

    def exists(self, uri: str) -> bool:
        """Whether there is an object, a file or a folder (in object storage: anything below the URI).

        Raises MissingObjectError when the very bucket is missing.
        """
        where = _locate(uri)
        if isinstance(where, Path):
            with _local_errors(uri):
                return where.exists()
        with contextlib.suppress(MissingObjectError):
            if where.key.strip("/"):
                self._call(uri, "head_object")
                return True
        return next(self._names(uri, recursive=True, page=1), None) is not None

    def size(self, uri: str) -> int:
        """Bytes of one object or file."""
        where = _locate(uri)
        if isinstance(where, _Object):
            return int(self._call(uri, "head_object")["ContentLength"])
        with _local_errors(uri):
            return where.stat().st_size

    def delete(self, uri: str, recursive: bool = False) -> None:
        """Delete an object or file, with `recursive` also all below it; what is not there is no error."""
        where = _locate(uri)
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
        where = _locate(uri)
        if isinstance(where, _Object):
            names = list(self._names(uri, recursive))
        else:
            with _local_errors(uri):
                names = [path.relative_to(where).as_posix() for path in _walk(where, recursive)]
        return sorted(join(uri, name) for name in names if name.endswith(suffix))

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
        target, where = Path(local), _locate(uri)
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
        where = _locate(uri)
        with _local_errors(str(path)), path.open("rb") as source:
            if isinstance(where, Path):
                with _replacing(where) as file:
                    shutil.copyfileobj(source, file)
            else:
                size = os.fstat(source.fileno()).st_size
                self._put(uri, size, lambda start, count: os.pread(source.fileno(), count, start))

    def _download(self, uri: str, target: Path) -> None:
        with _local_errors(str(target)), _ObjectFile(self, uri) as source, _replacing(target) as file:

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
            return self.read_bytes(uri).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{uri}: expected UTF-8 text, but {error}. Convert the file to UTF-8.") from error

    def write_text(self, uri: str, text: str) -> None:
        """Write UTF-8 text atomically."""
        self.write_bytes(uri, text.encode())

    def read_json(self, uri: str) -> Any:
        """The value of a JSON file; raises DataError when it is not JSON."""
        try:
            return json.loads(self.read_text(uri))
        except json.JSONDecodeError as error:
            raise DataError(f"{uri}: expected JSON, but {error}. Make the file again.") from error

    def write_json(self, uri: str, value: Any) -> None:
        """Write a JSON-serialisable value, indented, atomically."""
        self.write_text(uri, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def _call(self, uri: str, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one S3 request for the URI's object, its Body as bytes; repeats and raises."""
        where = cast(_Object, _locate(uri))
        given = {"Bucket": where.bucket, "Key": where.key, **arguments}
        given = {name: value for name, value in given.items() if value is not None}
        started = time.monotonic()
        for attempt in range(self.retries + 1):
            try:
                return self._request(method, given)
            except Exception as error:
                tries, elapsed = attempt + 1, time.monotonic() - started
                last = attempt == self.retries or elapsed > 2 * self.timeout_s
                if last or not _codes(error) & PASSING:
                    raise self._explain(error, uri, tries, elapsed) from error
                wait = min(MAX_BACKOFF_S, 2.0**attempt) * random.uniform(0.75, 1.25)
                level = logging.WARNING if attempt > 1 else logging.INFO
                log.log(level, "%s: %s; try %d follows in %.1f s", uri, error, tries + 1, wait)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _request(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        from fsspec.asyn import sync

        filesystem = _filesystem(self)

        async def request() -> dict[str, Any]:
            client = await filesystem.set_session()
            answer = await getattr(client, method)(**arguments)
            if "Body" in answer:
                async with answer["Body"] as stream:
                    answer["Body"] = await stream.read()
            return cast(dict[str, Any], answer)

        return cast(dict[str, Any], sync(filesystem.loop, request))

    def _put(self, uri: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """Put an object of `size` bytes, of which read(start, count) gives any stretch."""
        if size <= 2 * PART_BYTES:
            self._call(uri, "put_object", Body=read(0, size))
            return
        part_bytes = max(PART_BYTES, -(-size // 10_000))  # S3 allows 10 000 parts
        upload = self._call(uri, "create_multipart_upload")["UploadId"]

        def put_part(number: int) -> dict[str, Any]:
            body = read((number - 1) * part_bytes, part_bytes)
            answer = self._call(uri, "upload_part", UploadId=upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(PART_THREADS) as pool:
                parts = list(pool.map(put_part, range(1, -(-size // part_bytes) + 1)))
            self._call(uri, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one to tell, and soon
                replace(self, retries=0)._call(uri, "abort_multipart_upload", UploadId=upload)
            raise

    def _names(self, uri: str, recursive: bool, page: int = 1000) -> Iterator[str]:
        """What follows URI/ in the keys below it; empty objects that stand for folders are left out."""
        prefix = cast(_Object, _locate(uri)).key.rstrip("/")
        query = {"Prefix": prefix + "/" if prefix else "", "Delimiter": None if recursive else "/"}
        token = None
        while True:
            answer = self._call(
                uri, "list_objects_v2", Key=None, MaxKeys=page, ContinuationToken=token, **query
            )
            keys = (item["Key"] for item in answer.get("Contents", []))
            yield from (key[len(query["Prefix"] or "") :] for key in keys if not key.endswith("/"))
            token = answer.get("NextContinuationToken")
            if not token:
                return

    def _explain(self, error: Exception, uri: str, tries: int, elapsed: float) -> StorageError:
        """The error to raise: what S3 or the connection said, its likely cause and the next step."""
        environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        endpoint = self.endpoint_url or environment or "AWS (no endpoint_url or AWS_ENDPOINT_URL is set)"
        codes, text = _codes(error), str(error).rstrip(".")
        if "NoSuchBucket" in codes:
            bucket = cast(_Object, _locate(uri)).bucket
            return MissingObjectError(f"{uri}: there is no bucket {bucket!r} at {endpoint}. Check its name.")
        if "404" in codes:
            return MissingObjectError(f"{uri}: there is no such object at {endpoint}. Check the URI.")
        if codes & DENIED:
            used = "an anonymous request" if self.anonymous else "the credentials"
            return StorageError(
                f"{uri}: {endpoint} refused {used}: {text}. Check AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for public data set anonymous: true."
            )
        if "412" in codes:
            return StorageError(f"{uri}: the object was replaced while it was read. Read it again.")
        if codes & PASSING:
            return StorageError(
                f"{uri}: {endpoint} gave no good answer in {tries} tries over {elapsed:.0f} s: {text}. "
                "Check that it is up and that the endpoint is right, then run the same command again."
            )
        return StorageError(f"{uri}: {endpoint} answered: {text}. Check the URI, endpoint and region.")


class _ObjectFile(io.RawIOBase):
    """Random access to the object as it was when it was opened; each read is a request for that range."""

    def __init__(self, storage: Storage, uri: str) -> None:
        head = storage._call(uri, "head_object")
        self.size, self._etag = int(head["ContentLength"]), head["ETag"]
        self._storage, self._uri, self._position = storage, uri, 0

    def range(self, start: int, count: int) -> bytes:
        """At most `count` bytes from `start`, which lies before the end; safe from several threads."""
        stretch = f"bytes={start}-{min(start + count, self.size) - 1}"
        answer = self._storage._call(self._uri, "get_object", Range=stretch, IfMatch=self._etag)
        return cast(bytes, answer["Body"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        if not len(buffer) or self._position >= self.size:
            return 0
        data = self.range(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


_filesystems: dict[tuple[int, Storage, int], Any] = {}


def _filesystem(storage: Storage) -> Any:
    """This process's s3fs file system for these settings and the present AWS_* environment.

    Not s3fs's own instance cache: that one would keep the credentials it first saw. All repeating is left to
    `Storage._call`, since botocore's, s3fs's and ours together would multiply into minutes.
    """
    environment = hash(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))
    key = (os.getpid(), replace(storage, retries=0), environment)  # retries are no part of a connection
    if key not in _filesystems:
        import s3fs

        filesystem = s3fs.S3FileSystem(
            anon=storage.anonymous,
            endpoint_url=storage.endpoint_url,
            client_kwargs={"region_name": storage.region} if storage.region else {},
            config_kwargs={
                "connect_timeout": min(5.0, storage.timeout_s),
                "read_timeout": storage.timeout_s,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": 64,
            },
            skip_instance_cache=True,
        )
        _filesystems.setdefault(key, filesystem)  # two threads may race here: both use the first
    return _filesystems[key]


def _codes(error: Exception) -> set[str]:
    """S3's error code and HTTP status, or when S3 gave none the names of the exception and its bases."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return {str(answer["Error"].get("Code")), str(answer["ResponseMetadata"].get("HTTPStatusCode"))}
    names = {kind.__name__ for kind in type(error).__mro__}
    return {"SSLError"} if "SSLError" in names else names  # a wrong certificate does not pass


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise MissingObjectError(f"{uri}: there is no such file. Check the path.") from error
    except OSError as error:
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
