"""Tell image formats apart by names and first bytes, and say how to convert those that are unread.

`trainables.images` reads what Pillow itself reads, and HEIC by pillow-heif where it is installed.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import PurePath

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".png", ".gif", ".webp", ".avif"),
        *(".tif", ".tiff", ".bmp", ".dib", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".heic", ".heif", ".hif"),
    )
)
"""Suffixes, in lower case, of image files."""

PILLOW_FORMATS = (
    *("JPEG", "JPEG2000", "PNG", "GIF", "WEBP", "AVIF"),
    *("TIFF", "BMP", "DIB", "ICO", "TGA", "PPM"),
)
"""The formats that are read (MPO counts as JPEG). Others are refused, whatever a file is called:
for PostScript, Pillow would start another program."""

HEAD_BYTES = 256
"""Bytes at the beginning of a file that tell its format."""

SPECIAL_FILE = "is a pipe, a socket or a device"
"""Why what is no regular file is not read."""

_JPEG_XL = "is a JPEG XL image, which cannot be read: convert it to PNG or JPEG, such as with djxl"
_DICOM = (
    "is a DICOM file, whose levels need a window to be chosen: export it as PNG, such as with"
    " dcm2img or pydicom"
)
_RAW = (
    "is a camera's raw file, of which only a thumbnail could be read: develop it to JPEG or TIFF,"
    " such as with darktable or dcraw"
)
_HEIC = (
    "is a HEIC photo, which pillow-heif reads: pip install 'classifier-search[heif]', or convert it"
    " to JPEG"
)
_AVIF = "is an AVIF image, which this Pillow was built without: upgrade pillow, or convert it"

_REASONS = {
    **dict.fromkeys((".jxl",), _JPEG_XL),
    **dict.fromkeys((".dcm", ".dicom"), _DICOM),
    **dict.fromkeys(
        (
            *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf"),
            *(".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".mos", ".mrw", ".kdc"),
        ),
        _RAW,
    ),
}
"""By suffix, why a file cannot be read. Most raw files are TIFF files too, with a thumbnail."""

_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb", b"\0MRM")
_REDUCED_IMAGE = 1
_SUBFILE_TYPE_TAG, _DNG_VERSION_TAG = 254, 50706
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)


def unsupported_suffix(name: str) -> str | None:
    """Return why a file cannot be read, by its name; None where the name does not tell."""
    return _REASONS.get(PurePath(name).suffix.lower())


def unsupported_content(head: bytes) -> str | None:
    """Return why a file cannot be read, by its first `HEAD_BYTES`; None where they do not tell."""
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return _JPEG_XL
    if head[128:132] == b"DICM":
        return _DICOM
    is_canon = head[:4] == b"II*\0" and head[8:10] == b"CR"
    if is_canon or head.startswith(_RAW_STARTS) or head[4:12] == b"ftypcrx ":
        return _RAW
    if is_heic(head):
        return _HEIC
    return _AVIF if b"avif" in _brands(head) else None


def is_raw_tiff(tags: object) -> bool:
    """Return whether a TIFF's first image is the thumbnail of a raw file, by Pillow's `tag_v2`."""
    if not hasattr(tags, "get"):
        return False
    kind = tags.get(_SUBFILE_TYPE_TAG, 0)
    is_reduced = isinstance(kind, int) and bool(kind & _REDUCED_IMAGE)
    return is_reduced or tags.get(_DNG_VERSION_TAG) is not None


def raw_reason() -> str:
    """Return why a camera's raw file cannot be read."""
    return _RAW


def is_heic(head: bytes) -> bool:
    """Return whether a file's first bytes are those of HEIC, and not of its sibling AVIF."""
    brands = _brands(head)
    return bool(_HEIC_BRANDS & brands) and not brands & {b"avif", b"avis"}


def heic_reason() -> str | None:
    """Register the reader of HEIC; return why there is none."""
    if find_spec("pillow_heif") is None:
        return _HEIC
    importlib.import_module("pillow_heif").register_heif_opener()
    return None


def _brands(head: bytes) -> frozenset[bytes]:
    """Return the brands in a file's `ftyp` box (ISO/IEC 14496-12); none where it has none."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return frozenset(head[i : i + 4] for i in range(8, end - 3, 4) if i != 12)
