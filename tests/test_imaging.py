"""Channel mappings, crops, views, and PNG in and out, by numbers worked by hand."""

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphoray.errors import DataError
from morphoray.imaging.channels import MAPPINGS, ChannelColour, ChannelMapping
from morphoray.imaging.crops import VIEWS, crop, crop_positions, resize_square
from morphoray.imaging.png import (
    decode_channels,
    decode_image,
    decode_png,
    encode_image,
    encode_png,
    grid,
)

COLOURS = [(19, 0, 249), (42, 255, 31), (255, 0, 25), (45, 255, 252), (250, 0, 253), (254, 255, 40)]
RANGES = [(0, 51), (0, 107), (0, 64), (0, 191), (0, 89), (0, 191)]


def literal_rgb(raw: np.ndarray) -> np.ndarray:
    """The RxRx1 authors' formula, step by step, on (6, H, W); returns (3, H, W) int."""
    total = np.zeros((*raw.shape[1:], 3), dtype=int)
    for t, colour, (lo, hi) in zip(raw, COLOURS, RANGES, strict=True):
        x = (t / 255) / ((hi - lo) / 255) + lo / 255
        x = np.where(x > 1.0, 1.0, x)
        total += np.outer(x, colour).reshape(total.shape).astype(int)
    return np.where(total > 255, 255, total).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0, 0, 0, 0, 0, 0), (0, 0, 0)),
        ((51, 0, 0, 0, 0, 0), (19, 0, 249)),  # the top of channel 1's range
        ((200, 0, 0, 0, 0, 0), (19, 0, 249)),  # beyond it: clipped at 1
        ((17, 0, 0, 0, 0, 0), (6, 0, 83)),  # a third of it: 6.33 and 83.0, truncated
        ((0, 107, 0, 0, 89, 0), (255, 255, 255)),  # 42 + 250 and 31 + 253 saturate
        ((0, 0, 32, 0, 0, 0), (127, 0, 12)),  # half: 127.5 and 12.5, truncated
    ],
)
def test_rxrx1_rgb_by_hand(levels: tuple[int, ...], expected: tuple[int, ...]) -> None:
    raw = np.array(levels, dtype=np.uint8).reshape(6, 1, 1)
    assert tuple(MAPPINGS["rxrx1_rgb"].apply(raw)[:, 0, 0]) == expected


def test_rxrx1_rgb_equals_the_formula_for_every_byte() -> None:
    """Every byte in every channel alone (the sums are of these), and random combinations."""
    alone = np.zeros((6, 6, 256), dtype=np.uint8)
    for channel in range(6):
        alone[channel, channel] = np.arange(256)
    noise = np.random.default_rng(0).integers(0, 256, (6, 300, 257), dtype=np.uint8)
    for raw in (alone, noise):
        image = MAPPINGS["rxrx1_rgb"].apply(raw)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, literal_rgb(raw))


def test_rxrx1_rgb_equals_the_formula_on_real_images(real_data: Path) -> None:
    folders = sorted((real_data / "rxrx1-sample/images").glob("*/Plate*"))
    assert len(folders) == 12
    for folder in folders:
        files = [folder / f"B02_s2_w{channel}.png" for channel in range(1, 7)]
        raw = np.concatenate([decode_png(file.read_bytes()) for file in files])
        assert raw.shape == (6, 512, 512)
        np.testing.assert_array_equal(MAPPINGS["rxrx1_rgb"].apply(raw), literal_rgb(raw))


def test_mapping_sums_more_than_four_outputs() -> None:
    colours = (0, 50, 100, 150, 200, 255), (255, 0, 10, 90, 100, 255)
    mapping = ChannelMapping(
        name="six",
        inputs=("a", "b"),
        outputs=tuple("uvwxyz"),
        colours=tuple(ChannelColour(colour=colour) for colour in colours),
    )
    raw = np.random.default_rng(2).integers(0, 256, (2, 5, 7), dtype=np.uint8)
    parts = [
        (np.multiply.outer(np.array(colour), plane / 255)).astype(int)
        for colour, plane in zip(colours, raw, strict=True)
    ]
    np.testing.assert_array_equal(mapping.apply(raw), np.minimum(parts[0] + parts[1], 255))


@pytest.mark.parametrize("name", MAPPINGS)
def test_mapping_refuses_other_channels_and_depths(name: str) -> None:
    mapping = MAPPINGS[name]
    with pytest.raises(DataError, match=rf"'{name}' takes {len(mapping.inputs)} channels"):
        mapping.apply(np.zeros((len(mapping.inputs) + 1, 2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="8-bit pixels, found uint16"):
        mapping.apply(np.zeros((len(mapping.inputs), 2, 2), dtype=np.uint16))


def test_resize_square_takes_the_centre() -> None:
    image = np.arange(3 * 4 * 8, dtype=np.uint8).reshape(3, 4, 8)
    np.testing.assert_array_equal(resize_square(image, 4), image[:, :, 2:6])
    assert resize_square(image, 2).shape == (3, 2, 2)


def test_resize_is_antialiased() -> None:
    """A one-pixel checkerboard shrinks to its mean, not to one of its two values."""
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)[None]
    small = resize_square(board, 8)
    assert np.abs(small.astype(int) - 100).max() <= 5


def test_crop_positions_are_a_function_of_the_key() -> None:
    positions = crop_positions(100, 60, 20, 500, 7, "site-1")
    assert positions == crop_positions(100, 60, 20, 500, 7, "site-1")
    assert positions[:3] == crop_positions(100, 60, 20, 3, 7, "site-1")
    assert positions != crop_positions(100, 60, 20, 500, 7, "site-2")
    rows, columns = np.array(positions).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 80, 0, 40)  # both ends occur
    assert crop_positions(20, 20, 20, 2, 0) == [(0, 0), (0, 0)]
    with pytest.raises(DataError, match="21 x 21 pixels doesn't fit an image of 20 x 30"):
        crop_positions(20, 30, 21, 1, 0)


def test_crop() -> None:
    image = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    np.testing.assert_array_equal(crop(image, (1, 2), 3), image[:, 1:4, 2:5])


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("identity", [[1, 2], [3, 4]]),
        ("hflip", [[2, 1], [4, 3]]),
        ("vflip", [[3, 4], [1, 2]]),
        ("rot90", [[2, 4], [1, 3]]),
        ("rot180", [[4, 3], [2, 1]]),
        ("rot270", [[3, 1], [4, 2]]),
    ],
)
def test_views_by_hand(view: str, expected: list[list[int]]) -> None:
    image = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    batch = np.stack([np.stack([image, image + 10])])
    turned = VIEWS[view](batch)
    np.testing.assert_array_equal(turned[0, 0], expected)
    np.testing.assert_array_equal(turned[0, 1], np.array(expected) + 10)
    assert turned.flags["C_CONTIGUOUS"]


def test_views_are_all_tested() -> None:
    assert list(VIEWS) == ["identity", "hflip", "vflip", "rot90", "rot180", "rot270"]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 13, 9), dtype=np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
    assert encode_png(image) == encode_png(image.copy())


@pytest.mark.parametrize(
    "image", [np.zeros((2, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.float32)]
)
def test_png_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="a PNG takes an array"):
        encode_png(image)


def test_decode_reads_sixteen_bits_tiff_and_jpeg() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 8), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(deep).save(buffer, format=kind)
        pixels = decode_image(buffer.getvalue())
        assert pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, deep[None])
    with pytest.raises(DataError, match="16 bits"):
        buffer = io.BytesIO()
        Image.fromarray(deep).save(buffer, format="PNG")
        decode_png(buffer.getvalue())
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (10, 20, 30)).save(buffer, format="JPEG")
    assert decode_image(buffer.getvalue()).shape == (3, 6, 8)


def a_png(mode: str = "L", size: tuple[int, int] = (64, 64)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels and holds none."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"not an image at all", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (a_png()[:1000], "truncated: 1000 bytes"),
        (a_png()[:-12], "truncated"),  # all pixels there, the end marker not
        (a_png()[:2000] + bytes([a_png()[2000] ^ 1]) + a_png()[2001:], "corrupt: wrong checksum"),
        (a_png("P"), "wrong mode: P"),
        (a_png("RGBA"), "wrong mode: RGBA"),
        (a_png("1"), "wrong mode: 1"),
        (bomb(12_000), "too large"),  # above the limit
        (bomb(60_000), "too large"),  # above twice the limit, where Pillow raises
        (bomb(8), "corrupt"),  # no pixels
        (b"GIF89a" + bytes(100), "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "not an image|corrupt"),
    ],
)
def test_decode_gives_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(data)


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_a_stack_keeps_every_plane_and_its_name(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 7, 9), dtype=np.uint8)
    names = [f"α{number}" for number in range(channels)]
    data = encode_image(image, names)
    np.testing.assert_array_equal(decode_png(data), image)
    assert decode_channels(data)[1] == tuple(names)
    with Image.open(io.BytesIO(data)) as plain:  # what other programs see
        assert (plain.mode, plain.size) == ("L", (9, 7 * channels))
        np.testing.assert_array_equal(np.asarray(plain).reshape(channels, 7, 9), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_and_three_channels_are_a_plain_png(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 7, 9), dtype=np.uint8)
    assert encode_image(image, "abc"[:channels], 1) == encode_png(image, 1)
    assert decode_channels(encode_png(image))[1] == ()


def test_a_stack_needs_a_name_for_each_plane() -> None:
    with pytest.raises(DataError, match=r"K names, K at most 64; found \(5, 4, 4\)"):
        encode_image(np.zeros((5, 4, 4), np.uint8), ["dna", "er"])
    with pytest.raises(DataError, match="K at most 64"):
        encode_image(np.zeros((65, 4, 4), np.uint8), [str(number) for number in range(65)])


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[" * 100_000,
        "{}",
        '"dna"',
        "[]",
        '["dna"]',
        '["dna", 1]',
        '["dna", null]',
        json.dumps(["x"] * 65),
        '["a", "b", "c", "d", "e"]',  # 12 rows are no five planes
    ],
)
def test_a_stack_that_tells_nonsense_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError, match="corrupt"):
        decode_png(encode_png(np.zeros((1, 12, 4), np.uint8), text={"morphoray:channels": text}))


def test_a_colour_image_is_no_stack() -> None:
    with pytest.raises(DataError, match="no stack of 2 planes"):
        decode_png(encode_png(np.zeros((3, 4, 4), np.uint8), text={"morphoray:channels": '["a", "b"]'}))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_decode_raises_nothing_else_on_broken_bytes() -> None:
    """Cut or altered anywhere, an image is read or is a DataError."""
    generator = np.random.default_rng(0)
    tiff = io.BytesIO()
    Image.fromarray(generator.integers(0, 65536, (20, 20), dtype=np.uint16)).save(
        tiff, "TIFF", compression="tiff_lzw"
    )
    jpeg = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    stack = encode_image(generator.integers(0, 256, (5, 8, 8), dtype=np.uint8), "abcde")
    for whole in (a_png(size=(20, 20)), stack, tiff.getvalue(), jpeg.getvalue()):
        for _ in range(150):
            broken = bytearray(whole)
            for place in generator.integers(0, len(whole), 3):
                broken[place] = generator.integers(0, 256)
            for data in (bytes(broken), whole[: generator.integers(0, len(whole))]):
                with contextlib.suppress(DataError):
                    decode_image(data)
                with contextlib.suppress(DataError):
                    decode_png(data)


def test_grid_by_hand() -> None:
    images = [np.full((3, 2, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (3, 5, 7)
    assert sheet[0].tolist() == [
        [10, 10, 10, 255, 20, 20, 20],
        [10, 10, 10, 255, 20, 20, 20],
        [255] * 7,
        [30, 30, 30, 255, 255, 255, 255],
        [30, 30, 30, 255, 255, 255, 255],
    ]
    assert grid([np.zeros((1, 2, 2), np.uint8)], 1).shape == (3, 2, 2)
    with pytest.raises(DataError, match="at least one image"):
        grid([], 2)
    with pytest.raises(DataError, match="one size"):
        grid([images[0], np.zeros((3, 3, 3), np.uint8)], 2)
