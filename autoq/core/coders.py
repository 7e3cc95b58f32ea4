"""Entropy coders of byte streams, and what each would take without running the slow ones.

A stream is stored by the coder that makes it smallest: zstd and lzma find what repeats; asymmetric
numeral systems (constriction) come within a thousandth of the entropy of independent bytes, which
weights on a grid are, where zstd's Huffman codes lose some 2 % at 4 bits and 15 % at 2.
"""

from __future__ import annotations

import lzma
from enum import IntEnum

import constriction
import numpy as np
import numpy.typing as npt
import zstandard

Bytes = npt.NDArray[np.uint8]  # one dimension

# How far lzma looks back. Whoever decodes needs at least the window of whoever encoded, so it takes the
# largest: no stream of a chunk is longer.
_LEAST_WINDOW, _WINDOW = 1 << 12, 1 << 20
# On noise-like grids high levels of zstd waste bits on matches (ResNet-18's last 4-bit layer: 887 kB at
# level 1, 966 kB at 9); on everything else they find more.
_FAST_LEVEL, _SLOW_LEVEL, _ESTIMATE_LEVEL = 1, 19, 12
# Level 19 and lzma pack some 3 MB/s, and on grids without zeros they lose: a sample tells.
_SAMPLE_BYTES, _SAMPLED_PIECES = 1 << 16, 256
_HOPELESS = 1.01
SMALL_BYTES = 1 << 15  # so little may be packed in earnest even to be estimated
_DEPENDENT = 0.9
_FREQUENCY_SUM = 1 << 16
_PRESENT_BYTES = 32  # one bit for each of 256 symbols


class Coder(IntEnum):
    """How a stream is stored; the values are written into files."""

    RAW = 0
    ZSTD = 1
    LZMA = 2
    ANS = 3


class DamagedStream(ValueError):
    """Stored bytes are not what a coder wrote."""


def encode(stream: Bytes) -> tuple[Coder, bytes]:
    """Store a stream by the coder that makes it smallest; the simplest one where two are equal.

    The slow coders see a sample first, and the rest only where they do not lose on it.
    """
    stored = _fast(stream)
    looked_at = sample(stream)
    slow = _slow(looked_at)
    if looked_at is not stream:
        best = min(len(content) for _, content in _fast(looked_at))
        is_hopeless = min(len(content) for _, content in slow) >= _HOPELESS * best
        slow = [] if is_hopeless else _slow(stream)
    stored += slow
    return min(stored, key=lambda one: len(one[1]))


def _fast(stream: Bytes) -> list[tuple[Coder, bytes]]:
    content = stream.tobytes()
    found = [(Coder.RAW, content), (Coder.ZSTD, _zstd(content, _FAST_LEVEL))]
    return [*found, (Coder.ANS, _encode_ans(stream))] if stream.size else found


def _slow(stream: Bytes) -> list[tuple[Coder, bytes]]:
    content = stream.tobytes()
    # A window takes ten times its size in memory, which short streams would spend their time on.
    window = 1 << max(len(content) - 1, _LEAST_WINDOW - 1).bit_length()
    packed = lzma.compress(content, format=lzma.FORMAT_RAW, filters=_lzma_filters(min(window, _WINDOW)))
    return [(Coder.ZSTD, _zstd(content, _SLOW_LEVEL)), (Coder.LZMA, packed)]


def _lzma_filters(window: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": window, "lc": 0, "lp": 0, "pb": 0}]


def sample(stream: Bytes) -> Bytes:
    """Evenly spaced pieces of a long stream, each from a multiple of 64 bytes; a short one whole."""
    if stream.size <= _SAMPLE_BYTES:
        return stream
    piece = _SAMPLE_BYTES // _SAMPLED_PIECES
    starts = np.linspace(0, stream.size - piece, _SAMPLED_PIECES).astype(int) // 64 * 64
    return np.concatenate([stream[start : start + piece] for start in starts])


def decode(coder: int, stored: bytes, size: int) -> Bytes:
    """Restore a stream of `size` bytes; never allocates for more.

    Raises:
        DamagedStream: The stored bytes do not hold exactly that many.
    """
    if coder == Coder.RAW:
        content = stored
    elif coder == Coder.ZSTD:
        content = _decode_zstd(stored, size)
    elif coder == Coder.LZMA:
        content = _decode_lzma(stored, size)
    elif coder == Coder.ANS:
        return _decode_ans(stored, size)
    else:
        raise DamagedStream(f"unknown coder {coder}")
    if len(content) != size:
        raise DamagedStream(f"{len(content)} bytes where {size} were declared")
    return np.frombuffer(content, np.uint8)


def estimate(stream: Bytes, scale: float = 1.0, earnest_bytes: int = SMALL_BYTES) -> int:
    """Return about how many bytes `encode` would store, mostly without the slow coders: a trial waits for it.

    Args:
        stream: What is looked at.
        scale: How many times as long the stream is that this is a sample of.
        earnest_bytes: Length up to which a stream may be packed to know it.
    """
    content = stream.tobytes()
    zstd = round(scale * len(_zstd(content, _FAST_LEVEL)))
    ans = _ans_bytes(stream, scale)
    if zstd < _DEPENDENT * ans:  # bytes say much about those after them, so a longer look pays
        if scale == 1.0 and stream.size <= earnest_bytes:
            return min(len(content) for _, content in _slow(stream))
        zstd = min(zstd, round(scale * len(_zstd(content, _ESTIMATE_LEVEL))))
    return min(round(scale * stream.size), zstd, ans)


def _zstd(content: bytes, level: int) -> bytes:
    packed: bytes = zstandard.ZstdCompressor(level).compress(content)
    return packed


def _decode_zstd(stored: bytes, size: int) -> bytes:
    try:
        if zstandard.frame_content_size(stored) != size:
            raise DamagedStream(f"a zstd frame does not declare {size} bytes")
        content: bytes = zstandard.ZstdDecompressor().decompress(stored, read_across_frames=False)
    except zstandard.ZstdError as error:
        raise DamagedStream(f"zstd: {error}") from error
    return content


def _decode_lzma(stored: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma_filters(_WINDOW))
    try:
        content = decoder.decompress(stored, max_length=size + 1)  # one more would be one too many
    except lzma.LZMAError as error:
        raise DamagedStream(f"lzma: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise DamagedStream("lzma: the stream does not end where it should")
    return content


def _frequencies(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.uint16]:
    """Return how often symbols come, of about 65,536, from how often they were counted."""
    shares = np.rint(counts * (_FREQUENCY_SUM / counts.sum()))
    return np.asarray(np.clip(shares, 1, _FREQUENCY_SUM - 1), np.uint16)


def _ans_bytes(stream: Bytes, scale: float) -> int:
    """Bytes that a stream takes which is so many times as long as this sample of it."""
    if not stream.size:
        return 0
    counts = np.bincount(stream, minlength=256)
    counts = counts[counts > 0]
    frequencies = _frequencies(counts)
    bits = -np.log2(frequencies / frequencies.sum(dtype=np.int64)) @ counts
    return _PRESENT_BYTES + 2 * counts.size + 4 * (int(scale * bits / 32) + 1)


def _encode_ans(stream: Bytes) -> bytes:
    """Which symbols there are, their frequencies, then the words of the coder, all little-endian."""
    counts = np.bincount(stream, minlength=256)
    present = counts > 0
    frequencies = _frequencies(counts[present])
    index = np.cumsum(present, dtype=np.int32) - 1
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(index[stream], _model(frequencies))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return np.packbits(present).tobytes() + frequencies.astype("<u2").tobytes() + words


def _decode_ans(stored: bytes, size: int) -> Bytes:
    present = np.unpackbits(np.frombuffer(stored[:_PRESENT_BYTES], np.uint8))
    symbols = np.flatnonzero(present).astype(np.uint8)
    start = _PRESENT_BYTES + 2 * symbols.size
    if present.size != 256 or not symbols.size or len(stored) < start or (len(stored) - start) % 4:
        raise DamagedStream("an entropy-coded stream is cut short")
    frequencies = np.frombuffer(stored[_PRESENT_BYTES:start], "<u2")
    words = np.frombuffer(stored[start:], "<u4").astype(np.uint32)
    if not frequencies.all() or (words.size and not words[-1]):
        raise DamagedStream("an entropy-coded stream has an impossible table")
    decoded = constriction.stream.stack.AnsCoder(words).decode(_model(frequencies), size)
    return np.asarray(symbols[decoded], np.uint8)


def _model(frequencies: npt.NDArray[np.uint16]) -> constriction.stream.model.Categorical:
    """Probabilities that both sides compute alike: quotients of small integers.

    One symbol alone gets a companion that never comes, as the library takes two or more.
    """
    padded = np.append(frequencies, 1) if frequencies.size == 1 else frequencies
    return constriction.stream.model.Categorical(padded / padded.sum(dtype=np.int64), perfect=False)
