"""Which picture formats are read, and how their files are named."""

import functools
import importlib.util

#: Raster formats whose decoders ship with Pillow. Formats that start other programs (EPS) or hold documents are not
#: among them.
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000")

#: File name endings of these formats and of HEIC: what counts as a picture in a folder.
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".ico", ".tga", ".icb", ".vda", ".vst", ".jp2", ".j2k", ".jpc",
    ".jpf", ".jpx", ".j2c", ".heic", ".heics", ".heif", ".heifs", ".hif",
)  # fmt: skip

#: File name endings of videos; a file with another name is a picture unless the user says how many frames to take.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".ogv", ".wmv",
    ".asf",
)  # fmt: skip

#: Formats that every program that takes pictures can read.
WEB_FORMATS = ("PNG", "JPEG", "WEBP")

# How files of pictures and videos begin: (offset, bytes).
_SIGNATURES = (
    (0, b"\x89PNG"), (0, b"\xff\xd8\xff"), (0, b"RIFF"), (0, b"GIF8"), (0, b"BM"), (0, b"II*\0"), (0, b"MM\0*"),
    (0, b"P5"), (0, b"P6"), (4, b"ftyp"), (0, b"\0\0\x01\0"), (4, b"jP  "), (0, b"\xff\x4f\xff\x51"),
    (0, b"\x1a\x45\xdf\xa3"), (0, b"FLV"), (0, b"OggS"), (0, b"\0\0\x01\xba"),
)  # fmt: skip

# Major brands of HEIF files with HEVC content (ISO/IEC 23008-12), in bytes 8 to 12 of a file.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read here; HEIF is one of them if pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return PILLOW_FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*PILLOW_FORMATS, "HEIF")


def is_heic(data: bytes) -> bool:
    """Return whether the first bytes of a file are those of a HEIC or HEIF picture."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def is_picture_name(name: str) -> bool:
    """Return whether a file of this name counts as a picture."""
    return name.lower().endswith(SUFFIXES)


def is_video_name(name: str) -> bool:
    """Return whether a file of this name counts as a video."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def begins_like_media(data: bytes) -> bool:
    """Return whether bytes begin as a file of a common picture or video format does."""
    return any(data.startswith(signature, offset) for offset, signature in _SIGNATURES)
