"""Random numbers as pure functions of a seed, a stream and a counter: resumable, the same on every rank and device."""

from __future__ import annotations

import zlib
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from slimnb.errors import ParameterError
from slimnb.rules import short


def rng_at(seed: int, stream: str, step: int) -> np.random.Generator:
    """Return the random numbers of one decision: they depend on seed, stream and step alone, on every rank."""
    if not (isinstance(seed, int) and isinstance(step, (int, np.integer)) and 0 <= seed < 2**32 and step >= 0):
        raise ParameterError(f"seed = {short(seed)}, step = {short(step)}", "a seed is 0 to 2**32 - 1, a step >= 0",
                             "Set e.g. seed=0.")
    key = np.array([(seed << 32) | zlib.crc32(stream.encode()), step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))

_MASK = (1 << 64) - 1

_STEP = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: consecutive indices land far apart

_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # SplitMix64's finaliser


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    for shift, factor in _MIX:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value


def _key(seed: int, stream: str | int, epoch: int) -> int:
    key = 0
    for part in (seed, crc32(stream.encode()) if isinstance(stream, str) else stream, epoch):
        key = _mix((key + part + _STEP) & _MASK)
    return key


def keyed_bits(seed: int, stream: str | int, epoch: int, index: Tensor) -> Tensor:
    """Return 64 random bits for each entry of `index` (int64, any shape): a hash of (seed, stream, epoch, index).

    The arithmetic is of integers only, so CPU and CUDA give the same bits, in any order and any grouping. The index is
    the counter of SplitMix64 (Steele, Lea and Flood, 2014); the other three choose where it starts.
    """
    bits = index * _signed(_STEP) + _signed(_key(seed, stream, epoch))
    for shift, factor in _MIX:
        # torch's >> copies the sign bit in; the mask makes it a logical shift.
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return bits


def keyed_uniform(seed: int, stream: str | int, epoch: int, index: Tensor) -> Tensor:
    """Return a uniform float32 in [0, 1) for each entry of `index` (int64); it depends on the four arguments alone."""
    return ((keyed_bits(seed, stream, epoch, index) >> 40) & 0xFFFFFF).float() * 2.0**-24


def keyed_choice(seed: int, stream: str | int, epoch: int, index: Tensor, count: int) -> Tensor:
    """Return a uniform int64 in range(count) for each entry of `index` (int64); `count` is below 2^24."""
    return (keyed_uniform(seed, stream, epoch, index) * count).long()


def keyed_order(seed: int, stream: str | int, epoch: int, rows: Tensor) -> Tensor:
    """Return the rows (N,) int64 in a random order that is the same on every device."""
    return rows[torch.argsort(keyed_bits(seed, stream, epoch, rows), stable=True)]
