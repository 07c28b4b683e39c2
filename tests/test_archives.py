"""Files in zip archives: read in place from a folder and from S3, and archives made to do harm."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from morphoray import archives
from morphoray.errors import DataError, MissingObjectError, PassingStorageError, StorageError
from morphoray.storage import Storage, absolute, is_remote, join

STORAGE = Storage()
CONTENT = {"Week1/a.tif": os.urandom(5000), "Week1/deep/b.tif": b"b" * 100_000, "root.txt": b"text\n"}


def packed(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name) if name.endswith("/") else name, data)
    return buffer.getvalue()


@pytest.fixture(params=["local", "s3"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an archive with CONTENT."""
    folder = str(tmp_path)
    if request.param == "s3":
        folder = f"s3://{request.getfixturevalue('s3_env').bucket}/{tmp_path.name}"
    uri = join(folder, "x.zip")
    STORAGE.write_bytes(uri, packed(CONTENT))
    return uri


def test_members_are_read_in_place(archive: str) -> None:
    for name, data in CONTENT.items():
        uri = f"{archive}!/{name}"
        assert STORAGE.read_bytes(uri) == data
        assert STORAGE.exists(uri)
        assert STORAGE.size(uri) == len(data)
        with STORAGE.open(uri) as file:
            assert file.seek(-3, io.SEEK_END) == len(data) - 3
            assert file.read() == data[-3:]
    assert STORAGE.read_text(join(archive + "!", "root.txt")) == "text\n"
    assert is_remote(f"{archive}!/root.txt") == archive.startswith("s3://")
    assert absolute(f"{archive}!/Week1/") == f"{archive}!/Week1"


def test_folders_are_listed(archive: str) -> None:
    root = archive + "!"
    assert STORAGE.list_files(root) == [f"{root}/root.txt"]
    assert STORAGE.list_files(root + "/", recursive=True) == sorted(f"{root}/{name}" for name in CONTENT)
    assert STORAGE.list_files(f"{root}/Week1") == [f"{root}/Week1/a.tif"]
    assert STORAGE.list_files(f"{root}/Week1/", suffix="b.tif", recursive=True) == [
        f"{root}/Week1/deep/b.tif"
    ]
    assert STORAGE.list_files(f"{root}/Week") == []
    assert [STORAGE.exists(f"{root}/{name}") for name in ("", "Week1", "Week1/deep", "Week", "Week1/b")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_what_is_missing(archive: str) -> None:
    with pytest.raises(MissingObjectError, match=r"x\.zip!/none: there is no such file in the archive"):
        STORAGE.read_bytes(f"{archive}!/none")
    gone = archive.replace("x.zip", "y.zip") + "!"
    with pytest.raises(MissingObjectError, match=r"y\.zip"):
        STORAGE.read_bytes(f"{gone}/a")
    assert not STORAGE.exists(f"{gone}/a")
    assert STORAGE.list_files(gone) == []


def test_writes_are_refused(archive: str, tmp_path: Path) -> None:
    uri = f"{archive}!/new.txt"
    for write in (
        lambda: STORAGE.write_bytes(uri, b"x"),
        lambda: STORAGE.delete(uri),
        lambda: STORAGE.upload_dir(Path(__file__).parent, f"{archive}!/tests"),
        lambda: STORAGE.download_dir(f"{archive}!/Week1", tmp_path / "copy"),
    ):
        with pytest.raises(StorageError, match="lies in a zip archive, which is only read"):
            write()
    assert STORAGE.read_bytes(f"{archive}!/root.txt") == b"text\n"


def test_an_archive_that_is_replaced_is_read_anew(archive: str) -> None:
    uri = f"{archive}!/root.txt"
    assert STORAGE.read_bytes(uri) == b"text\n"
    STORAGE.write_bytes(archive, packed({"other": bytes(9000), "root.txt": b"new"}))
    if is_remote(archive):
        with pytest.raises(PassingStorageError, match="replaced while it was read"):
            STORAGE.read_bytes(uri)
    assert STORAGE.read_bytes(uri) == b"new"


def test_one_directory_serves_many_threads(archive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(archives, "_slots", type(archives._slots)())
    first = archives.Archive.__init__

    def counted(self: archives.Archive, storage: Storage, uri: str) -> None:
        made.append(uri)
        first(self, storage, uri)

    monkeypatch.setattr(archives.Archive, "__init__", counted)
    names = [*CONTENT] * 20
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda name: STORAGE.read_bytes(f"{archive}!/{name}"), names))
    assert found == [CONTENT[name] for name in names]
    assert made == [archive]


def test_directories_are_kept_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ARCHIVES", 2)
    monkeypatch.setattr(archives, "_slots", type(archives._slots)())
    for number in (0, 1, 0, 2):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(packed({"a": str(number).encode()}))
        assert STORAGE.read_bytes(f"{path}!/a") == str(number).encode()
    assert [Path(uri).name for _, uri in archives._slots] == ["0.zip", "2.zip"]


def directory_entry(data: bytes, number: int = 0) -> int:
    """Where an entry of the directory begins."""
    at = data.index(b"PK\x01\x02")
    for _ in range(number):
        at = data.index(b"PK\x01\x02", at + 4)
    return at


def patched(data: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with one field of its first directory entry changed."""
    changed = bytearray(data)
    struct.pack_into(form, changed, directory_entry(data) + offset, value)
    return bytes(changed)


def damaged(data: bytes) -> bytes:
    at = 30 + len("a.tif") + 20
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


PLAIN = packed({"a.tif": os.urandom(4000)}, zipfile.ZIP_STORED)
DEFLATED = packed({"a.tif": os.urandom(400) * 10})
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "wrong CRC": (lambda: damaged(PLAIN), "corrupt in the archive: Bad CRC-32"),
    "damaged deflate": (lambda: DEFLATED.replace(DEFLATED[40:60], b"\xff" * 20), "corrupt in the archive"),
    "encrypted": (lambda: patched(PLAIN, 8, "<H", 1), "encrypted in the archive. Decrypt it first"),
    "rare method": (lambda: packed({"a.tif": b"x"}, zipfile.ZIP_LZMA), "compression method 14, expected"),
    "unknown method": (lambda: patched(PLAIN, 10, "<H", 99), "compression method 99, expected"),
    "declares 2 GiB": (lambda: patched(PLAIN, 24, "<I", 2**31), "declares 2147483648 bytes, more than"),
    "ratio": (lambda: packed({"a.tif": bytes(2**25)}), "more than 100 times: a zip bomb"),
    "lies: holds more": (
        lambda: patched(packed({"a.tif": bytes(2**25)}), 24, "<I", 1000),
        r"corrupt in the archive: Bad CRC-32|more than can hold",
    ),
    "lies: holds less": (lambda: patched(DEFLATED, 24, "<I", 5000), "corrupt in the archive"),
    "packed too long": (
        lambda: patched(packed({"a.tif": b"a", "b": os.urandom(2**18)}), 20, "<I", 2**17),
        "more than can hold",
    ),
    "beyond the end": (lambda: patched(PLAIN, 20, "<I", 5000), "reaches beyond the archive's end"),
    "offset elsewhere": (lambda: patched(PLAIN, 42, "<I", 7), "no file header where its directory says"),
    "truncated": (lambda: PLAIN[:-30], "not a zip archive, or a truncated one. Copy it again"),
    "half": (lambda: PLAIN[: len(PLAIN) // 2], "not a zip archive, or a truncated one"),
    "empty file": (lambda: b"", "no zip directory at the end of its 0 bytes"),
    "a web page": (lambda: b"<html>404</html>", "not a zip archive"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_archive_has_a_reason(kind: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[kind]
    path = tmp_path / "x.zip"
    path.write_bytes(make())
    with pytest.raises(DataError, match=reason) as raised:
        STORAGE.read_bytes(f"{path}!/a.tif")
    assert str(path) in str(raised.value)


def test_any_damage_is_a_data_error(tmp_path: Path) -> None:
    """400 archives with a few bytes changed or cut: the right content, or an error that says why."""
    files = {"a.tif": os.urandom(100), "Week1/b.tif": b"b" * 300}
    whole = packed(files)
    generator = random.Random(0)
    errors = 0
    for number in range(400):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path = tmp_path / f"{number}.zip"
        path.write_bytes(data[: len(data) - generator.choice([0, 0, 0, generator.randrange(60)])])
        for name, content in files.items():
            try:
                assert STORAGE.read_bytes(f"{path}!/{name}") == content
            except (DataError, MissingObjectError):
                errors += 1
    assert 100 < errors < 800


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.tif", r"'\.\.' or an empty part"),
        ("Week1/../../a.tif", r"'\.\.' or an empty part"),
        ("/etc/a.tif", "an absolute name"),
        ("C:/a.tif", "an absolute name"),
        ("Week1\\a.tif", "a backslash"),
        ("Week1//a.tif", "an empty part"),
    ],
)
def test_names_that_leave_the_archive_are_ignored_and_told(
    name: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(packed({name: b"evil", "Week1/good.tif": b"good"}))
    assert STORAGE.list_files(f"{path}!", recursive=True) == [f"{path}!/Week1/good.tif"]
    assert "1 members refused" in caplog.text
    with pytest.raises(StorageError if name.startswith("/") else DataError, match=rf"{reason}|no such file"):
        STORAGE.read_bytes(f"{path}!/{name}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for data in (b"one", b"two", b"three"):
            archive.writestr("a.tif", data)
    with pytest.raises(DataError, match=r"a\.tif: refused: its name is in the archive twice"):
        STORAGE.read_bytes(f"{path}!/a.tif")
    assert STORAGE.list_files(f"{path}!") == []


def test_zip64_prefix_and_a_long_local_header(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n" * 50)  # as self-extracting archives begin
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo("a.tif")
            info.extra = struct.pack("<HH", 0xCAFE, 4000) + bytes(4000)
            archive.writestr(info, b"content" * 500)
            with archive.open("b.tif", "w", force_zip64=True) as member:
                member.write(b"b" * 70_000)
    assert STORAGE.read_bytes(f"{path}!/a.tif") == b"content" * 500
    assert STORAGE.read_bytes(f"{path}!/b.tif") == b"b" * 70_000


def test_a_read_costs_one_request(s3_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{s3_env.bucket}/requests/x.zip"
    STORAGE.write_bytes(uri, packed({f"{number}.tif": os.urandom(1000) for number in range(50)}))
    STORAGE.list_files(uri + "!")
    asked: list[str] = []
    call = Storage._call

    def counted(self: Storage, uri: str, method: str, **arguments: Any) -> dict[str, Any]:
        asked.append(method)
        return call(self, uri, method, **arguments)

    monkeypatch.setattr(Storage, "_call", counted)
    for number in range(5):
        assert len(STORAGE.read_bytes(f"{uri}!/{number}.tif")) == 1000
    assert asked == ["get_object"] * 5
