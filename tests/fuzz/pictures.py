"""Random pictures in every form in which a caller may give one, most of them damaged."""

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from tests.fuzz.mutations import HOSTILE, Mutator
from tops_engine.media.formats import readable_formats

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
SIZES = ((1, 1), (2, 3), (48, 32), (64, 64), (1, 400), (400, 1), (168, 150), (7, 2000))
DTYPES = ("uint8", "uint16", "int8", "int64", "float16", "float32", "float64", "bool", "complex64", "object", "<U3")
SHAPES = ((8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4), (3, 8, 9), (0, 9, 3), (8,), (), (2, 8, 9, 3), (1, 1, 3))
MEDIA_TYPES = (
    "image/png",
    "image/jpeg",
    "IMAGE/PNG",
    "text/plain",
    "image/svg+xml",
    "",
    "image/png;charset=utf-8",
    "x",
)


class Pictures:
    """Makes pictures that depend on the seed alone."""

    def __init__(self, mutator: Mutator) -> None:
        self.mutator = mutator
        self.random = mutator.random

    def source(self) -> Any:
        """Return a picture as bytes, base64, a data URL, an open file, a Pillow image or an array."""
        choice = self.random.random()
        if choice < 0.08:
            return self._array()
        if choice < 0.16:
            return self._image()
        content = self.file()
        forms: list[Any] = [content, content, content, io.BytesIO(content), self.text(content), self.data_url(content)]
        return self.random.choice(forms)

    def file(self) -> bytes:
        """Return the bytes of a picture file, three of four times damaged."""
        content = self._encoded()
        if self.random.random() < 0.75:
            damage = self.random.choice((self.mutator.content, self.mutator.header, self._claim_another_size))
            content = damage(content)
        return content

    def text(self, content: bytes) -> str:
        """Return base64, at times damaged or in another alphabet."""
        text = base64.b64encode(content).decode()
        changes = (
            lambda: text,
            lambda: text.rstrip("="),
            lambda: text.replace("+", "-").replace("/", "_"),
            lambda: "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
            lambda: text[: self.random.randint(0, len(text))],
            lambda: self.mutator.content(text.encode()).decode("latin-1"),
        )
        return self.random.choice(changes)()

    def data_url(self, content: bytes) -> str:
        """Return a data URL, at times without a part of what it needs."""
        media_type, text = self.random.choice(MEDIA_TYPES), self.text(content)
        forms = (
            f"data:{media_type};base64,{text}",
            f"data:{media_type};base64,{text}",
            f"data:{media_type};BASE64, {text}",
            f"data:{media_type},{text}",
            f"data:{media_type};base64{text}",
            f"data:;base64,{text.replace('+', '%2B')}",
        )
        return self.random.choice(forms)

    def _image(self) -> Image.Image:
        mode, (width, height) = self.random.choice(MODES), self.random.choice(SIZES)
        if mode == "PA":
            return Image.new("LA", (width, height)).convert("PA")
        noise = np.random.default_rng(self.random.randrange(2**32)).integers(0, 256, (height, width, 3), np.uint8)
        picture = Image.fromarray(noise)
        try:
            picture = picture.convert(mode)
        except ValueError:  # Pillow does not convert RGB to every mode
            picture = picture.convert("L").convert(mode) if mode != "RGBa" else picture.convert("RGBA").convert(mode)
        if self.random.random() < 0.1:
            picture.info["transparency"] = self.random.choice((0, 300, b"\0\1", (1, 2, 3), (1,), "x"))
        return picture

    def _array(self) -> np.ndarray[Any, Any]:
        shape, dtype = self.random.choice(SHAPES), self.random.choice(DTYPES)
        values = np.random.default_rng(self.random.randrange(2**32)).integers(0, 2, shape)
        scale = self.random.choice((1, 100, 1e30, float("nan"), float("inf"), -3))
        with np.errstate(all="ignore"):
            return (values * (scale if dtype.startswith("float") else 1)).astype(dtype)

    def _encoded(self) -> bytes:
        picture = self._image()
        options: dict[str, Any] = {"speed": 10}  # of the AVIF encoder
        if self.random.random() < 0.4:
            options["exif"] = self._exif()
        if self.random.random() < 0.3:
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
            options["icc_profile"] = self.mutator.content(profile)
        if self.random.random() < 0.2:
            options |= {"save_all": True, "append_images": [self._image()], "duration": 20}
        if self.random.random() < 0.2:
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text("prompt", "x" * self.random.choice((10, 2_000_000)), zip=True)
        format, stream = self.random.choice(readable_formats()), io.BytesIO()
        for image, kept in ((picture, options), (picture, {}), (Image.new("RGB", picture.size), {})):
            try:
                image.save(stream, format, **kept)
                return stream.getvalue()
            except Exception:  # the writer of this format does not take the mode or an option
                stream = io.BytesIO()
        return b""

    def _exif(self) -> bytes:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = self.random.choice((1, 3, 5, 6, 8, 0, 9, 65535))
        exif[ExifTags.Base.Make] = "x" * self.random.choice((1, 20_000))
        content = exif.tobytes()
        return content if self.random.random() < 0.5 else self.mutator.content(content)

    def _claim_another_size(self, content: bytes) -> bytes:
        """Overwrite what may be a width or height in the header by a large number."""
        place, number = (
            self.random.randrange(4, 200),
            self.random.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 70_000)),
        )
        order: Literal["big", "little"] = self.random.choice(("big", "little"))
        return content[:place] + number.to_bytes(4, order) + content[place + 4 :]


def anything(mutator: Mutator) -> Any:
    """Return a value that is no picture in most cases."""
    return mutator.random.choice((*HOSTILE, 3.5, object(), io.StringIO("x"), b"", b"GIF89a", "data:", "data:,", [b"x"]))
