"""Small images of noise: as tensors, in files of every layout, and cropped one by one."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from slimnb.rng import keyed_bits

NAMES = [f"class {k}" for k in range(10)]


def pictures(count, seed=0, size=32):
    """Random images (count, size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def encode(image, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(path, encoded, labels, label="label", image="img"):
    """One file as the Hugging Face hub lays it out, class names in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"info": {"features": {label: {"names": NAMES, "_type": "ClassLabel"}}}}
    rows = [{"bytes": data, "path": None} for data in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(np.asarray(labels))})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)


def write_cifar10(root, train=64, test=16, form="PNG"):
    """A small cifar10 under root: train in two files, test in one. Returns (images, labels) of train."""
    images, labels = pictures(train), np.arange(train) % 10
    half = train // 2
    folder = root / "cifar10"
    encoded = [encode(image, form) for image in images]
    write_parquet(folder / "train-00000-of-00002.parquet", encoded[:half], labels[:half])
    write_parquet(folder / "train-00001-of-00002.parquet", encoded[half:], labels[half:])
    encoded = [encode(image, form) for image in pictures(test, 1)]
    write_parquet(folder / "test-00000-of-00001.parquet", encoded, np.arange(test) % 10)
    return images, labels


def write_folder(root, parts=("train", "val"), each=4):
    """A folder of PNG images, two classes, of different sizes; one is grey."""
    number = 0
    for part in parts:
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for k in range(each):
                shape = (20 + k % 8, 30 - k % 8, 3)
                image = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
                image = image[..., 0] if number == 0 else image
                Image.fromarray(image).save(root / part / name / f"{k}.png")
                number += 1
    return root


def noise(*shape):
    """Random uint8 pixels."""
    count = torch.Size(shape).numel()
    return (keyed_bits(0, "pixels", 0, torch.arange(count)) & 255).to(torch.uint8).view(shape)


def one_crop(image, top, left, flip, size, mode="constant"):
    """Reference: pad one image (3, S, S) with zeros or as numpy's `mode`, cut, mirror."""
    far = 64
    padded = np.pad(image, ((0, 0), (far, far), (far, far)), mode)
    cut = padded[:, far + top : far + top + size, far + left : far + left + size]
    return cut[:, :, ::-1] if flip else cut
