"""Scale bars: a round length in micrometres, and the bar drawn into an image."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]

LARGEST = 0.4  # of an image's width


def bar_length(width: int, um_per_pixel: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten, in µm, that fills at most LARGEST of `width` pixels."""
    most = LARGEST * width * um_per_pixel
    power = 10.0 ** math.floor(math.log10(most))
    return max(unit * power for unit in (1, 2, 5) if unit * power <= most * (1 + 1e-9))


def with_bar(image: Pixels, um_per_pixel: float) -> Pixels:
    """A copy of an image (3, H, W) with a white bar of `bar_length` at the lower right, edged black."""
    _, height, width = image.shape
    length = max(1, round(bar_length(width, um_per_pixel) / um_per_pixel))
    thick, margin = max(1, height // 40), max(2, height // 20)
    bottom, right = height - margin, width - margin
    drawn = image.copy()
    drawn[:, bottom - thick - 1 : bottom + 1, right - length - 1 : right + 1] = 0
    drawn[:, bottom - thick : bottom, right - length : right] = 255
    return drawn


def text_width(text: str, height: int = 22) -> int:
    """Pixels that a text of `text_strip` takes in a strip of this height."""
    return math.ceil(ImageFont.load_default(size=0.6 * height).getlength(text))


def text_strip(texts: list[tuple[int, str]], width: int, height: int = 22) -> Pixels:
    """A white strip (3, height, width) with black texts, each beginning at its column, cut at the edge."""
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=0.6 * height)
    for column, text in texts:
        draw.text((column, 0.15 * height), text, fill="black", font=font)
    return np.asarray(strip).transpose(2, 0, 1)
