"""What several test modules share: a real S3 server and the folder of real sample images."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3server import LocalS3, running

TEST_DATA = Path(os.environ.get("MORPHORAY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """An S3 server for the whole session; .endpoint_url, .bucket, .env. Stop only `s3_server_own`."""
    with running(tmp_path_factory.mktemp("s3"), bucket="tests") as server:
        yield server


@pytest.fixture(scope="session")
def s3_env(s3_server: LocalS3) -> Iterator[LocalS3]:
    """The session's server with AWS_* set for it, in this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        yield s3_server


@pytest.fixture
def s3_server_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalS3]:
    """A server that a test may .stop() and .start(), with AWS_* set for it during the test."""
    with running(tmp_path / "s3", bucket="own") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sample images; the test is skipped where there is none."""
    if not TEST_DATA.is_dir():
        pytest.skip(f"no real sample images: {TEST_DATA} is missing (set MORPHORAY_TEST_DATA)")
    return TEST_DATA


@pytest.fixture(scope="session")
def real_bbbc021() -> Path:
    """The folder of BBBC021's real tables, without its images; the test is skipped where there is none."""
    folder = TEST_DATA.parent / "reference" / "bbbc021"
    if not folder.is_dir():
        pytest.skip(f"no real BBBC021 tables: {folder} is missing")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained bundle (see bundles.py), to be read only."""
    from bundles import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny" / "bundle")


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained autoencoder to be read only: 3 channels, 16 x H/8 x W/8 latents."""
    from morphoray.diffusion.codec import CodecConfig, build_codec, save_codec

    folder = tmp_path_factory.mktemp("codec") / "vae"
    config = CodecConfig(latent_channels=16, block_out_channels=(8, 8, 8, 16), norm_num_groups=8)
    save_codec(build_codec(config), folder)
    return folder


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster for one test module."""
    from morphoray.pipelines.cluster import connected

    with connected():
        yield
