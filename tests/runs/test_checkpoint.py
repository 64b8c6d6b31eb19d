"""State as bytes: every bit comes back, and nothing but our own bytes is ever taken for it."""

import json
import pickle
import random
import struct
import sys

import pytest
import torch

from slimnb.errors import SlimnbError
from slimnb.runs.checkpoint import KEY, check_like, pack, unpack
from slimnb.runs.files import Damaged


def state():
    big = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    return {
        "channels last": big.to(memory_format=torch.channels_last),
        "view": big[0, 1:],
        "same memory": big,
        "transposed": big[0, 0].T,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "double": torch.tensor([5e-324, -0.0, 1 / 3, float("inf")], dtype=torch.float64),
        "needs gradient": torch.ones(2, requires_grad=True),
    }


def bits(tensor):
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    return tensor.dtype, tensor.shape, raw.tolist()


def test_every_bit_comes_back():
    original = state()
    found, header = unpack(pack(original, {"step": 3}))
    assert header == {"step": 3} and found.keys() == original.keys()
    for name, tensor in original.items():
        assert bits(found[name]) == bits(tensor), name
        assert found[name].is_contiguous() and not found[name].requires_grad


def test_equal_states_are_equal_bytes():
    assert pack(state(), {"a": 1, "b": 2}) == pack(dict(reversed(state().items())), {"b": 2, "a": 1})


def test_nan_is_refused_with_name_and_place():
    bad = torch.zeros(4, 3, dtype=torch.bfloat16)
    bad[1, 2] = float("nan")
    with pytest.raises(SlimnbError, match=r"NumericsError: .*'w' holds 1 NaN \(first at 5\)") as caught:
        pack({"fine": torch.ones(2), "w": bad}, {})
    assert caught.value.exit_status == 5


def test_only_tensors_are_stored():
    with pytest.raises(SlimnbError, match="StoreError: state 'step' is a int"):
        pack({"step": 3}, {})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("b"), "'b' — missing in the stored state"),
        (lambda s: s.update(c=torch.ones(1)), "'c' — unknown to this net"),
        (lambda s: s.update(a=torch.ones(3, 2)), r"'a' — stored shape \(3, 2\), needed \(2, 3\)"),
        (lambda s: s.update(a=s["a"].double()), "'a' — stored as torch.float64, needed torch.float32"),
        (lambda s: s.update(a=s["b"], b=s["a"]), r"'a' — stored shape \(4,\)"),
    ],
)
def test_first_difference_is_named(change, text):
    reference = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    stored = dict(reference)
    check_like(dict(reversed(stored.items())), reference)
    change(stored)
    with pytest.raises(SlimnbError, match=f"StoreError: tensor {text}"):
        check_like(stored, reference)


def with_index(index, body=b""):
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    return struct.pack("<Q", len(text)) + text + body


META = {"__metadata__": {KEY: "{}"}}
CRAFTED = {
    "empty": b"",
    "seven bytes": b"1234567",
    "pickle": pickle.dumps({"a": print}),
    "zip": b"PK\x03\x04" + bytes(100),
    "numpy": b"\x93NUMPY\x01\x00" + bytes(100),
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "header past the end": struct.pack("<Q", 100) + b"{}",
    "no metadata": with_index({}),
    "foreign metadata": with_index({"__metadata__": {"format": "pt"}}),
    "metadata no JSON": with_index({"__metadata__": {KEY: "x"}}),
    "metadata a list": with_index({"__metadata__": {KEY: "[]"}}),
    "metadata a number": with_index({"__metadata__": {KEY: 3}}),
    "index a list": with_index([]),
    "duplicate name": with_index(b'{"__metadata__":{"slimnb":"{}"},"a":1,"a":2}'),
    "depth bomb": with_index(b"[" * 100_000),
    "overlap": with_index(
        META | {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, bytes(8)
    ),
    "negative offset": with_index(META | {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
    "offset past the end": with_index(
        META | {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ),
    "shape and size differ": with_index(
        META | {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "dtype an attribute": with_index(
        META | {"a": {"dtype": "load", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "bytes to spare": with_index(META, b"hidden"),
}


@pytest.mark.parametrize("data", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_bytes_are_damaged_and_nothing_else(data):
    with pytest.raises(Damaged):
        unpack(data)


def test_mutated_headers_raise_nothing_unforeseen():
    original = pack(state(), {"step": 3})
    rng = random.Random(1)
    length = 8 + int.from_bytes(original[:8], "little")
    refused = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(length)] = rng.randrange(256)
        try:
            unpack(bytes(data))
        except Damaged:
            refused += 1
    assert refused > 200


def test_reading_unpickles_nothing():
    seen, active = [], True

    def hook(event, args):
        if active and event == "pickle.find_class":
            seen.append(args)

    sys.addaudithook(hook)  # cannot be removed, hence the flag
    sys.audit("pickle.find_class", "what unpickling", "announces")
    assert seen
    seen.clear()
    unpack(pack(state(), {}))
    for data in CRAFTED.values():
        with pytest.raises(Damaged):
            unpack(data)
    active = False
    assert not seen
