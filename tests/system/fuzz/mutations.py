"""Damaged images and request bodies, drawn from a seed."""

from __future__ import annotations

import io
import json
import random
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from trainables.models.model import FORMAT
from trainables.models.model_card import ModelCard

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "ICO", "TGA", "AVIF")
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def valid_images() -> list[bytes]:
    """Encode one small image in each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    made = []
    for kind in FORMATS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        made.append(file.getvalue())
    return made


def tiny_model() -> bytes:
    """Make a model file that is read up to its weights, which are incomplete."""
    card = ModelCard("tinynet", ("a", "b"), 32, 36, 5, 0, n_members=1)
    tensors = {"head.1.weight": torch.zeros(2, 4)}
    part = {"card": json.dumps(asdict(card)), "prefix": tensors, "members": [tensors]}
    file = io.BytesIO()
    torch.save({"format": FORMAT, "weights": [1.0], "parts": [{**part, "ood": tensors}]}, file)
    return file.getvalue()


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Damage bytes as disks, networks and attackers do: flip, cut, delete, repeat, overwrite."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice(_INTERESTING)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            part = data[at : at + rng.randrange(1, 64)]
            data[at:at] = part * rng.randrange(1, 4)
        else:
            value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1))
            data[at : at + 4] = value.to_bytes(4, rng.choice(("big", "little")))
    return bytes(data)


def draw_body(rng: random.Random, images: list[bytes]) -> tuple[bytes, str]:
    """Draw a request's body and its content type: mostly valid forms of damaged images."""
    boundary = b"".join(rng.choice((b"a", b"Z", b"7", b"-")) for _ in range(rng.randrange(1, 30)))
    parts = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        content = mutate(rng, rng.choice(images)) if rng.random() < 0.8 else rng.randbytes(200)
        name = rng.choice((b"images", b"images", b"images", b"image", b"", b"\xff"))
        file = rng.choice((b"x.png", b"", b"../../x", b"\xc3\xa4\xff.jpg", b'"', b"x" * 500))
        parts.append(
            b"--"
            + boundary
            + b'\r\nContent-Disposition: form-data; name="'
            + name
            + b'"; filename="'
            + file
            + b'"\r\nContent-Type: image/png\r\n\r\n'
            + content
            + b"\r\n"
        )
    body = b"".join(parts) + b"--" + boundary + b"--\r\n"
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    if rng.random() < 0.3:
        body = mutate(rng, body)
    if rng.random() < 0.1:
        kind = rng.choice(
            (
                "",
                "application/json",
                "multipart/form-data",
                "text/plain",
                "multipart/mixed; x",
                "application/x-www-form-urlencoded",
                'multipart/form-data; boundary="',
                kind + "x",
            )
        )
    return body, kind
