from __future__ import annotations

import hashlib
import lzma

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.coders import (
    _WINDOW,
    Bytes,
    Coder,
    DamagedStream,
    _encode_ans,
    _lzma_filters,
    decode,
    encode,
    estimate,
)


def grid(bits: int, size: int = 200_000) -> Bytes:
    """Weights of a normal distribution on a grid, as GPTQ leaves them."""
    top = 2 ** (bits - 1) - 1
    values = np.random.default_rng(bits).standard_normal(size) * top / 2.5
    return np.clip(np.rint(values), -top, top).astype(np.int8).view(np.uint8)


def entropy_bytes(stream: Bytes) -> float:
    shares = np.bincount(stream) / stream.size
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * stream.size / 8)


STREAMS = {
    "empty": np.zeros(0, np.uint8),
    "one byte": np.array([7], np.uint8),
    "one value": np.full(5000, 7, np.uint8),
    "two values, one of them once": np.append(np.zeros(70_000, np.uint8), np.uint8(1)),
    "noise": np.random.default_rng(0).integers(0, 256, 3000, np.uint8),
    "text": np.frombuffer(b"layer1.block2.conv3_quantized_scale " * 90, np.uint8),
    "2 bits": grid(2),
    "4 bits": grid(4),
    "8 bits": grid(8),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_what_is_stored_comes_back_and_takes_what_was_estimated(stream: Bytes) -> None:
    coder, stored = encode(stream)
    np.testing.assert_array_equal(decode(coder, stored, stream.size), stream)
    assert abs(len(stored) - estimate(stream)) <= max(0.01 * len(stored), 40)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_grid_takes_its_entropy(bits: int) -> None:
    stream = grid(bits)
    coder, stored = encode(stream)
    assert coder is Coder.ANS
    assert len(stored) < 1.003 * entropy_bytes(stream) + 600


@given(st.binary(max_size=600))
@settings(max_examples=60, deadline=None)
def test_every_coder_gives_every_stream_back(content: bytes) -> None:
    stream = np.frombuffer(content, np.uint8)
    coder, stored = encode(stream)
    assert decode(coder, stored, stream.size).tobytes() == content
    if content:
        assert decode(Coder.ANS, _encode_ans(stream), stream.size).tobytes() == content


def test_files_written_by_one_version_of_the_entropy_coder_are_read_by_another() -> None:
    stored = _encode_ans(grid(4, 1000))
    assert hashlib.sha256(stored).hexdigest()[:16] == "fb5db589958e9721"


@pytest.mark.parametrize("coder", [Coder.RAW, Coder.ZSTD, Coder.LZMA])
def test_a_stream_of_another_length_is_refused(coder: Coder) -> None:
    stream = np.zeros(1000, np.uint8)
    stored = {Coder.RAW: stream.tobytes()}.get(coder) or _stored_as(coder, stream)
    for size in (0, 999, 1001, 10**6):
        with pytest.raises(DamagedStream):
            decode(coder, stored, size)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        bytes(31),
        bytes(32),  # no symbol
        b"\xff" * 32,  # 256 symbols and no table
        b"\x80" + bytes(31) + b"\x00\x00",  # a symbol that never comes
        b"\x80" + bytes(31) + b"\x01\x00" + b"abc",  # words cut short
        b"\xc0" + bytes(31) + b"\x01\x00\x01\x00" + bytes(4),  # a last word that no coder leaves
    ],
)
def test_an_entropy_coded_stream_that_no_coder_wrote_is_refused(stored: bytes) -> None:
    with pytest.raises(DamagedStream):
        decode(Coder.ANS, stored, 10)


@pytest.mark.parametrize("coder", [4, 255, -1])
def test_an_unknown_coder_is_refused(coder: int) -> None:
    with pytest.raises(DamagedStream, match="unknown coder"):
        decode(coder, b"", 0)


def _stored_as(coder: Coder, stream: Bytes) -> bytes:
    if coder is Coder.ZSTD:
        return zstandard.compress(stream.tobytes())
    return lzma.compress(stream.tobytes(), format=lzma.FORMAT_RAW, filters=_lzma_filters(_WINDOW))
