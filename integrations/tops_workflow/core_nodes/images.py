"""Loading, saving, batching, scaling and cropping pictures. IMAGE is float32 [B, H, W, C] in 0..1."""

import json
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from torch import Tensor

from tops_engine.errors import InvalidImage, shorten
from tops_engine.media.images import open_frames
from tops_workflow.core_nodes.files import (
    annotated_path,
    fingerprint,
    input_pictures,
    next_file,
    shown_file,
    validate_file,
)

MAX_RESOLUTION = 16384
SCALINGS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
CHANNELS = ["alpha", "red", "green", "blue"]


def _frames(name: str) -> list[Image.Image]:
    """Open the frames of the file that a widget's value names."""
    path = annotated_path(name)
    if not path.is_file():
        raise InvalidImage(f"There is no picture {shorten(name)}.")
    return open_frames(path, path.name)


def channel(frame: Image.Image, name: str) -> Tensor:
    """Return one channel of an RGB or RGBA frame: float32 [H, W] in 0..1.

    Alpha is inverted, as ComfyUI's masks are, and 0 where the frame has none.
    """
    if name == "alpha" and frame.mode != "RGBA":
        return torch.zeros(frame.height, frame.width)
    values = to_tensor(frame.getchannel(name[0].upper()))
    return 1.0 - values if name == "alpha" else values


def to_tensor(picture: Image.Image) -> Tensor:
    """Convert an L, RGB or RGBA picture to float32 [H, W] or [H, W, C] in 0..1."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) / 255
    shape = (picture.height, picture.width)
    return pixels.view(shape if picture.mode == "L" else (*shape, len(picture.mode)))


def scale(image: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """Scale [B, H, W, C] to [B, height, width, C]; ``crop="center"`` first crops to the new aspect ratio."""
    if crop == "center":
        ratio = width / height
        old_height, old_width = image.shape[1:3]
        keep_width, keep_height = min(old_width, round(old_height * ratio)), min(old_height, round(old_width / ratio))
        left, top = (old_width - keep_width) // 2, (old_height - keep_height) // 2
        image = image[:, top : top + keep_height, left : left + keep_width]
    if method == "lanczos":
        resized = [to_picture(one).resize((width, height), Image.Resampling.LANCZOS) for one in image]
        return torch.stack([to_tensor(one) for one in resized])
    moved = image.movedim(-1, 1)
    return F.interpolate(moved, size=(height, width), mode=method).movedim(1, -1)


def to_picture(image: Tensor) -> Image.Image:
    """Convert [H, W, C] in 0..1, with 1, 3 or 4 channels, to a picture."""
    pixels = (image.clamp(0, 1) * 255).round().byte().cpu().contiguous()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes())


class LoadImage:
    """Core id LoadImage."""

    CATEGORY = "image"
    ESSENTIALS_CATEGORY = "Basics"
    DESCRIPTION = "Loads a picture of the input folder; an animation becomes a batch."
    SEARCH_ALIASES = ["open image", "import image", "upload"]
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (input_pictures(), {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        return True if image is None else validate_file(image, "image")

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return fingerprint(image)

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        frames = _frames(image)
        pixels = torch.stack([to_tensor(frame.convert("RGB")) for frame in frames])
        return pixels, torch.stack([channel(frame, "alpha") for frame in frames])


class LoadImageMask:
    """Core id LoadImageMask."""

    CATEGORY = "mask"
    DESCRIPTION = "Loads one channel of a picture as a mask."
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (input_pictures(), {"image_upload": True}), "channel": (CHANNELS, {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:
        return True if image is None else validate_file(image, "image")

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str) -> str:
        return fingerprint(image) + channel

    def load_image(self, image: str, channel: str) -> tuple[Tensor]:
        return (torch.stack([_channel(frame, channel) for frame in _frames(image)[:1]]),)


_channel = channel


class SaveImage:
    """Core id SaveImage. ComfyUI 0.3 had no output."""

    CATEGORY = "image"
    ESSENTIALS_CATEGORY = "Basics"
    DESCRIPTION = "Saves pictures in the output folder, with the workflow inside."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True

    KIND = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = {"default": "ComfyUI", "tooltip": "How the files' names begin; it may hold a subfolder."}
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The pictures."}), "filename_prefix": ("STRING", prefix)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        saved = save_pictures(images, self.KIND, filename_prefix, prompt, extra_pnginfo)
        return {"ui": {"images": saved}, "result": (images,)}


class PreviewImage(SaveImage):
    """Core id PreviewImage."""

    DESCRIPTION = "Shows pictures."
    KIND = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The pictures."})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }


def save_pictures(
    images: Tensor,
    kind: str,
    prefix: str,
    prompt: dict[str, Any] | None,
    extra_pnginfo: dict[str, Any] | None,
) -> list[dict[str, str]]:
    """Write [B, H, W, C] as numbered PNGs that contain their workflow; return their places as the frontend expects."""
    place = next_file(kind, prefix, "_.png")
    chunks = PngImagePlugin.PngInfo()
    for key, value in ({"prompt": prompt} | (extra_pnginfo or {})).items():
        if value is not None:
            chunks.add_text(key, json.dumps(value))
    saved = []
    for number, image in enumerate(images, place.number):
        path = place.path(number)
        to_picture(image).save(path, pnginfo=chunks, compress_level=4)
        saved.append(shown_file(path, kind))
    return saved


class ImageBatch:
    """Core id ImageBatch."""

    CATEGORY = "image"
    DESCRIPTION = "Joins two batches; the second is cut and scaled to the first's size."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: Tensor, image2: Tensor) -> tuple[Tensor]:
        channels = max(image1.shape[3], image2.shape[3])
        first, second = with_channels(image1, channels), with_channels(image2, channels)
        if first.shape[1:3] != second.shape[1:3]:
            second = scale(second, first.shape[2], first.shape[1], "bilinear", "center")
        return (torch.cat([first, second]),)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Return pictures with at least these channels; a new alpha channel is opaque."""
    return image if image.shape[3] == channels else F.pad(image, (0, channels - image.shape[3]), value=1.0)


class ImageScale:
    """Core id ImageScale."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Scales pictures to a width and height; 0 follows the other."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (SCALINGS, {}),
                "width": ("INT", size),
                "height": ("INT", size),
                "crop": (["disabled", "center"], {}),
            }
        }

    def upscale(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        if not width and not height:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (scale(image, width, height, upscale_method, crop),)


class ImageCrop:
    """Core id ImageCrop."""

    CATEGORY = "image/transform"
    DESCRIPTION = "Cuts a rectangle out of pictures."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "crop"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        place = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        widgets = {"width": size, "height": size, "x": place, "y": place}
        return {"required": {"image": ("IMAGE",), **{name: ("INT", options) for name, options in widgets.items()}}}

    def crop(self, image: Tensor, width: int, height: int, x: int, y: int) -> tuple[Tensor]:
        left, top = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
        return (image[:, top : top + height, left : left + width],)
