"""morphoray.storage on local folders and a real S3 server, also one that refuses, stops or is not there."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from morphoray import storage as storage_module
from morphoray.errors import DataError, MissingObjectError, StorageError
from morphoray.schema import latents, stamp
from morphoray.storage import Storage, absolute, is_remote, join
from s3server import LocalS3, free_ports

STORAGE = Storage()
BIG = 3 * storage_module.PART_BYTES + 7  # four parts


@pytest.fixture(params=["local", "file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder's URI, one for each kind of storage."""
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3_env').bucket}/{tmp_path.name}"
    return str(tmp_path / "data") if request.param == "local" else (tmp_path / "my data").as_uri()


def latents_table(rows: int = 5) -> pa.Table:
    rng = np.random.default_rng(0)
    schema = latents(4, 8, 8)
    tensors = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(rows, 4, 8, 8)).astype(np.float16))
        for _ in range(2)
    ]
    values = {"site_id": [f"s{i}" for i in range(rows)], "is_control": [False] * rows, "crop": [0] * rows}
    columns = []
    for field in schema:
        if field.name.startswith("latent_"):
            columns.append(tensors.pop())
        else:
            default = [None if field.nullable else "x"] * rows
            columns.append(pa.array(values.get(field.name, default), field.type))
    return stamp(pa.Table.from_arrays(columns, schema=schema), "abc")


def test_bytes_round_trip(root: str) -> None:
    uri = join(root, "a folder", "ä+b %20.bin")
    assert not STORAGE.exists(uri)
    for data in (b"", b"first", os.urandom(100_000), bytearray(b"x"), pa.py_buffer(b"buffer")):
        STORAGE.write_bytes(uri, data)
        assert STORAGE.read_bytes(uri) == bytes(data)
        assert STORAGE.size(uri) == len(bytes(data))
    assert STORAGE.exists(uri)
    assert STORAGE.exists(join(root, "a folder"))
    assert not STORAGE.exists(join(root, "a fold"))
    STORAGE.delete(uri)
    STORAGE.delete(uri)
    assert not STORAGE.exists(uri)


def test_text_and_json_round_trip(root: str) -> None:
    value = {"name": "µm", "values": [1, 2.5, None]}
    STORAGE.write_json(join(root, "a.json"), value)
    assert STORAGE.read_json(join(root, "a.json")) == value
    assert json.loads(STORAGE.read_text(join(root, "a.json"))) == value
    STORAGE.write_text(join(root, "bad.json"), "{")
    with pytest.raises(DataError, match=r"bad\.json: expected JSON"):
        STORAGE.read_json(join(root, "bad.json"))
    STORAGE.write_bytes(join(root, "excel.csv"), b"\xef\xbb\xbfa,b")
    assert STORAGE.read_text(join(root, "excel.csv")) == "a,b"
    STORAGE.write_bytes(join(root, "latin.csv"), b"\xb5m")
    with pytest.raises(DataError, match=r"latin\.csv: expected UTF-8"):
        STORAGE.read_text(join(root, "latin.csv"))


def test_table_round_trip_keeps_tensors_and_metadata(root: str) -> None:
    uri, table = join(root, "part.parquet"), latents_table()
    STORAGE.write_table(uri, table)
    again = STORAGE.read_table(uri)
    assert again.equals(table, check_metadata=True)
    assert again.schema.field("latent_mean").type == pa.fixed_shape_tensor(pa.float16(), (4, 8, 8))
    some = STORAGE.read_table(uri, columns=["site_id", "latent_std"])
    assert some.equals(table.select(["site_id", "latent_std"]))
    with pytest.raises(DataError, match=r"found no \['colour'\] among"):
        STORAGE.read_table(uri, columns=["site_id", "colour"])


@pytest.mark.parametrize("columns", [None, ["site_id"]])
@pytest.mark.parametrize("content", [b"", b"not a table", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_what_is_not_parquet(root: str, content: bytes, columns: list[str] | None) -> None:
    uri = join(root, "bad.parquet")
    STORAGE.write_bytes(uri, content)
    with pytest.raises(DataError, match=r"bad\.parquet: expected a Parquet file"):
        STORAGE.read_table(uri, columns)


def test_open_is_seekable(root: str) -> None:
    data = os.urandom(2**20 + 17)
    STORAGE.write_bytes(join(root, "a.bin"), data)
    with STORAGE.open(join(root, "a.bin")) as file:
        rng = random.Random(0)
        for _ in range(20):
            start, count = rng.randrange(len(data)), rng.randrange(400_000)
            file.seek(start)
            assert file.read(count) == data[start : start + count]
        assert file.seek(-10, os.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read() == b""


def test_open_serves_zip_and_parquet(root: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images/w1.png", b"png")
    STORAGE.upload_dir(tmp_path, join(root, "zips"))
    with STORAGE.open(join(root, "zips", "a.zip")) as file, zipfile.ZipFile(file) as archive:
        assert archive.read("images/w1.png") == b"png"
    STORAGE.write_table(join(root, "a.parquet"), latents_table(50))
    with STORAGE.open(join(root, "a.parquet")) as file:
        assert pq.ParquetFile(file).metadata.num_rows == 50


def test_list_files(root: str) -> None:
    assert STORAGE.list_files(root) == []
    for name in ("b.png", "a.png", "a.txt", "sub/c.png", "sub/deep/d.png", "sub2/e.png"):
        STORAGE.write_bytes(join(root, name), b"x")
    assert STORAGE.list_files(root) == [join(root, name) for name in ("a.png", "a.txt", "b.png")]
    assert STORAGE.list_files(root + "/", ".png") == [join(root, name) for name in ("a.png", "b.png")]
    below = STORAGE.list_files(join(root, "sub"), recursive=True)
    assert below == [join(root, name) for name in ("sub/c.png", "sub/deep/d.png")]
    assert [STORAGE.read_bytes(uri) for uri in below] == [b"x", b"x"]


def test_delete_recursive_leaves_the_neighbours(root: str) -> None:
    for name in ("run/a", "run/sub/b", "run2/c", "run.txt"):
        STORAGE.write_bytes(join(root, name), b"x")
    STORAGE.delete(join(root, "run"), recursive=True)
    assert STORAGE.list_files(root, recursive=True) == [join(root, "run.txt"), join(root, "run2/c")]
    STORAGE.delete(join(root, "run"), recursive=True)


@pytest.mark.parametrize("uri", ["/", "file:///", "s3://bucket", "s3://bucket/"])
def test_delete_refuses_a_whole_disk_or_bucket(uri: str) -> None:
    with pytest.raises(StorageError, match="refusing to delete"):
        STORAGE.delete(uri, recursive=True)


def test_folder_round_trip_with_an_object_in_parts(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    contents = {"a.txt": b"a", "empty": b"", "sub/ü x.bin": os.urandom(9_000), "big": os.urandom(BIG)}
    for name, data in contents.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / ".a.txt.0123.tmp").write_bytes(b"left by a killed writer")
    STORAGE.upload_dir(source, join(root, "bundle"))
    target = STORAGE.download_dir(join(root, "bundle"), tmp_path / "target")
    found = {path.relative_to(target).as_posix(): path for path in target.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == contents
    with pytest.raises(MissingObjectError, match="nothing-here"):
        STORAGE.download_dir(join(root, "nothing-here"), tmp_path / "other")


def test_write_bytes_in_parts(root: str) -> None:
    data = os.urandom(BIG)
    STORAGE.write_bytes(join(root, "big"), data)
    assert STORAGE.read_bytes(join(root, "big")) == data


def test_missing_file_or_key(root: str) -> None:
    uri = join(root, "nothing")
    for read in (STORAGE.read_bytes, STORAGE.size, STORAGE.read_table, STORAGE.open, STORAGE.read_json):
        with pytest.raises(MissingObjectError, match="nothing: there is no such"):
            read(uri)


def test_killed_writer_leaves_nothing_to_see(root: str, s3_env: LocalS3) -> None:
    """SIGKILL while large writes replace an object: the old content stays and nothing new is listed."""
    uri = join(root, "folder", "weights")
    STORAGE.write_bytes(uri, b"old")
    script = (
        "import sys; from morphoray.storage import Storage\n"
        "data = bytes(400 * 2**20); print('go', flush=True); Storage().write_bytes(sys.argv[1], data)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, uri], stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline() == b"go\n"
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    assert STORAGE.read_bytes(uri) == b"old"
    assert STORAGE.list_files(join(root, "folder"), recursive=True) == [uri]


def test_failed_local_write_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        STORAGE.write_bytes(str(tmp_path / "taken"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(StorageError, match="/dev/null/below: "):
        STORAGE.write_bytes("/dev/null/below", b"x")


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert join("s3://b/run/", "/a/", "", "b.txt") == "s3://b/run/a/b.txt"
    assert join("/", "a") == "/a"
    assert join("", "a") == "./a"
    assert absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert absolute("file:///a%20b") == "/a b"
    assert absolute("s3://b/a%20b") == "s3://b/a%20b"
    assert is_remote("s3://b/k")
    assert not is_remote("file:///k")
    for uri, said in (
        ("gs://b/k", "unknown scheme 'gs'"),
        ("s3:///k", "no bucket"),
        ("file://host/k", "found host 'host'"),
    ):
        with pytest.raises(StorageError, match=said):
            STORAGE.read_bytes(uri)


def test_storage_pickles_without_secrets(s3_env: LocalS3) -> None:
    STORAGE.write_bytes(f"s3://{s3_env.bucket}/pickled", b"x")
    stored = pickle.dumps(STORAGE)
    assert s3_env.secret_key.encode() not in stored
    assert pickle.loads(stored) == STORAGE
    assert s3_env.secret_key not in repr(STORAGE)


def _read_in_child(storage: Storage, uri: str, answers: "multiprocessing.Queue[bytes]") -> None:
    answers.put(storage.read_bytes(uri))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_have_their_own_connection(s3_env: LocalS3, method: str) -> None:
    uri = f"s3://{s3_env.bucket}/forked"
    STORAGE.write_bytes(uri, b"for the child")
    context = multiprocessing.get_context(method)
    answers: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=_read_in_child, args=(STORAGE, uri, answers))
    child.start()
    assert answers.get(timeout=30) == b"for the child"
    child.join(10)
    assert child.exitcode == 0
    assert STORAGE.read_bytes(uri) == b"for the child"


def test_many_threads_read(s3_env: LocalS3) -> None:
    uris = [f"s3://{s3_env.bucket}/many/{i}" for i in range(200)]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: STORAGE.write_bytes(uris[i], str(i).encode() * 1000), range(200)))
        assert list(pool.map(STORAGE.read_bytes, uris)) == [str(i).encode() * 1000 for i in range(200)]
    assert len(STORAGE.list_files(f"s3://{s3_env.bucket}/many")) == 200


def test_listing_goes_on_after_a_page(s3_env: LocalS3) -> None:
    root = f"s3://{s3_env.bucket}/paged"
    for i in range(7):
        STORAGE.write_bytes(join(root, str(i)), b"")
    assert list(STORAGE._names(root, recursive=False, page=3)) == [str(i) for i in range(7)]


def test_missing_bucket(s3_env: LocalS3) -> None:
    uri = "s3://no-such-bucket/key"
    for call in (
        lambda: STORAGE.read_bytes(uri),
        lambda: STORAGE.write_bytes(uri, b"x"),
        lambda: STORAGE.list_files(uri),
        lambda: STORAGE.exists(uri),
    ):
        with pytest.raises(MissingObjectError, match="no-such-bucket/key: there is no bucket"):
            call()


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_fail_at_once(s3_env: LocalS3, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    uri, secret = f"s3://{s3_env.bucket}/denied", "a-wrong-key-that-nobody-may-see"
    STORAGE.write_bytes(uri, b"x")
    monkeypatch.setenv(wrong, secret)
    for call in (
        lambda: STORAGE.read_bytes(uri),
        lambda: STORAGE.size(uri),
        lambda: STORAGE.write_bytes(uri, b"y"),
        lambda: STORAGE.list_files(uri),
    ):
        started = time.monotonic()
        with pytest.raises(StorageError, match="refused the credentials") as caught:
            call()
        assert time.monotonic() - started < 5
        message = str(caught.value)
        assert uri in message and s3_env.endpoint_url in message and "AWS_ACCESS_KEY_ID" in message
        assert not isinstance(caught.value, MissingObjectError)
        assert secret not in message and s3_env.secret_key not in message


def test_no_credentials(s3_env: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        STORAGE.read_bytes(f"s3://{s3_env.bucket}/a")


def test_anonymous(s3_env: LocalS3) -> None:
    client = s3_env.client()
    client.create_bucket(Bucket="public")
    statement = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    statement["Resource"] = ["arn:aws:s3:::public", "arn:aws:s3:::public/*"]
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket="public", Policy=json.dumps(policy))
    STORAGE.write_bytes("s3://public/open", b"for all")
    STORAGE.write_bytes(f"s3://{s3_env.bucket}/closed", b"for some")
    anonymous = Storage(anonymous=True)
    assert anonymous.read_bytes("s3://public/open") == b"for all"
    assert anonymous.list_files("s3://public") == ["s3://public/open"]
    with pytest.raises(StorageError, match="refused an anonymous request"):
        anonymous.read_bytes(f"s3://{s3_env.bucket}/closed")
    with pytest.raises(StorageError, match="refused an anonymous request"):
        anonymous.write_bytes("s3://public/open", b"mine")


def test_endpoint_of_the_storage_goes_before_the_environment(
    s3_env: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORAGE.write_bytes(f"s3://{s3_env.bucket}/endpoint", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    here = Storage(endpoint_url=s3_env.endpoint_url, region="us-east-1")
    assert here.read_bytes(f"s3://{s3_env.bucket}/endpoint") == b"x"


def test_object_replaced_while_open(s3_env: LocalS3) -> None:
    uri = f"s3://{s3_env.bucket}/replaced"
    STORAGE.write_bytes(uri, bytes(2**20))
    with STORAGE.open(uri) as file:
        assert file.read(10) == bytes(10)
        STORAGE.write_bytes(uri, b"1" * 2**20)
        file.seek(600_000)
        with pytest.raises(StorageError, match="replaced while it was read"):
            file.read(10)


def test_transfers_survive_a_restart_of_the_server(s3_server_own: LocalS3, tmp_path: Path) -> None:
    """Threads write and read 300 objects, and a folder goes up in parts, while the server is away 5 s."""
    root = f"s3://{s3_server_own.bucket}/data"
    payload, done = os.urandom(200_000), threading.Semaphore(0)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "weights").write_bytes(os.urandom(8 * storage_module.PART_BYTES))

    def transfer(i: int) -> bool:
        STORAGE.write_bytes(join(root, str(i)), payload[i:])
        done.release()
        return STORAGE.read_bytes(join(root, str(i))) == payload[i:]

    with ThreadPoolExecutor(9) as pool:
        upload = pool.submit(STORAGE.upload_dir, tmp_path / "bundle", join(root, "bundle"))
        small = [pool.submit(transfer, i) for i in range(300)]
        for _ in range(20):
            assert done.acquire(timeout=60)
        assert not upload.done()
        s3_server_own.stop()
        time.sleep(5)
        s3_server_own.start()
        upload.result()
        assert all(future.result() for future in small)
    assert len(STORAGE.list_files(root)) == 300
    assert all(STORAGE.read_bytes(join(root, str(i))) == payload[i:] for i in range(300))
    again = STORAGE.download_dir(join(root, "bundle"), tmp_path / "again")
    assert (again / "weights").read_bytes() == (tmp_path / "bundle" / "weights").read_bytes()


def test_server_that_is_not_there(s3_env: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    (tmp_path / "a").write_bytes(b"x")
    once, thrice = Storage(retries=0), Storage(retries=2, timeout_s=5)
    for call, tries, waits_s in (
        (lambda: once.read_bytes("s3://b/k"), 1, 0),
        (lambda: once.upload_dir(tmp_path, "s3://b/k"), 1, 0),
        (lambda: once.list_files("s3://b/k"), 1, 0),
        (lambda: once.open("s3://b/k"), 1, 0),
        (lambda: thrice.read_bytes("s3://b/k"), 3, 1 + 2),
    ):
        started = time.monotonic()
        with pytest.raises(StorageError, match=f"s3://b/k.*{endpoint}.* in {tries} tries"):
            call()
        assert 0.75 * waits_s <= time.monotonic() - started < 1.25 * waits_s + 10


def test_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, s3_server_own: LocalS3) -> None:
    """A stalled server: each try ends after timeout_s, and none is begun after twice that."""
    process = s3_server_own._process
    assert process
    process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StorageError, match="no good answer in 2 tries"):
            Storage(retries=1, timeout_s=1).read_bytes(f"s3://{s3_server_own.bucket}/a")
        assert time.monotonic() - started < 5
    finally:
        process.send_signal(signal.SIGCONT)
