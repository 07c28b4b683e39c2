"""Requests to object storage: what is repeated, for how long, and what a failure means."""

import contextlib
import io
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from morphoray.errors import MissingObjectError, PassingStorageError, StorageError

log = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20  # objects above two parts travel in parts, each repeated on its own
PART_THREADS = 4
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


_IN_ARCHIVE = re.compile(r"(?<=\.zip)!(?:/|$)", re.IGNORECASE)


class S3Object(NamedTuple):
    """An S3 bucket and a key in it; the key is empty for the bucket itself."""

    bucket: str
    key: str


def split_archive(uri: str) -> tuple[str, str] | None:
    """The archive and the path inside it of `x.zip!/path` ("" for its root), or None for another form."""
    archive, *inside = _IN_ARCHIVE.split(str(uri), maxsplit=1)
    return (archive, inside[0].strip("/")) if inside else None


def locate(uri: str) -> Path | S3Object:
    """Where a URI lies: a local path or an S3 object. Raises StorageError for any other form."""
    if split_archive(uri):
        raise StorageError(
            f"{uri}: lies in a zip archive, which is only read. Write beside it, or unpack it."
        )
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
            return S3Object(bucket, key)
        raise StorageError(f"{uri}: found no bucket, expected s3://bucket/key.")
    raise StorageError(f"{uri}: unknown scheme {scheme!r}, expected a local path, file:// or s3://.")


@dataclass(frozen=True)
class S3Requests:
    """The settings that requests need, and the requests; `Storage` is what others use."""

    endpoint_url: str | None = None
    anonymous: bool = False
    region: str | None = None
    retries: int = 6
    timeout_s: float = 60

    def _call(self, uri: str, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one S3 request for the URI's object, its Body as bytes; repeats and raises."""
        where = cast(S3Object, locate(uri))
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
        for start, answer in self._pages(uri, recursive, page):
            keys = (item["Key"] for item in answer.get("Contents", []))
            yield from (key[start:] for key in keys if not key.endswith("/"))

    def _folders(self, uri: str) -> Iterator[str]:
        """The next part of the keys that go on below URI/, each once."""
        for start, answer in self._pages(uri, recursive=False, page=1000):
            yield from (item["Prefix"][start:-1] for item in answer.get("CommonPrefixes", []))

    def _pages(self, uri: str, recursive: bool, page: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The answers to listing what lies below URI/, each with the length of URI/ in its keys."""
        prefix = cast(S3Object, locate(uri)).key.rstrip("/")
        query = {"Prefix": prefix + "/" if prefix else "", "Delimiter": None if recursive else "/"}
        token = None
        while True:
            answer = self._call(
                uri, "list_objects_v2", Key=None, MaxKeys=page, ContinuationToken=token, **query
            )
            yield len(query["Prefix"] or ""), answer
            token = answer.get("NextContinuationToken")
            if not token:
                return

    def _explain(self, error: Exception, uri: str, tries: int, elapsed: float) -> StorageError:
        """The error to raise: what S3 or the connection said, its likely cause and the next step."""
        environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        endpoint = self.endpoint_url or environment or "AWS (no endpoint_url or AWS_ENDPOINT_URL is set)"
        codes, text = _codes(error), str(error).rstrip(".")
        if "NoSuchBucket" in codes:
            bucket = cast(S3Object, locate(uri)).bucket
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
            return PassingStorageError(f"{uri}: the object was replaced while it was read. Read it again.")
        if codes & PASSING:
            return PassingStorageError(
                f"{uri}: {endpoint} gave no good answer in {tries} tries over {elapsed:.0f} s: {text}. "
                "Check that it is up and that the endpoint is right, then run the same command again."
            )
        return StorageError(f"{uri}: {endpoint} answered: {text}. Check the URI, endpoint and region.")


class ObjectFile(io.RawIOBase):
    """Random access to the object as it was when it was opened; each read is a request for that range."""

    def __init__(self, storage: S3Requests, uri: str) -> None:
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


_filesystems: dict[tuple[int, S3Requests, int], Any] = {}


def _filesystem(storage: S3Requests) -> Any:
    """This process's s3fs file system for these settings and the present AWS_* environment.

    Not s3fs's own instance cache: that one would keep the credentials it first saw. All repeating is left to
    `S3Requests._call`, since botocore's, s3fs's and ours together would multiply into minutes.
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
