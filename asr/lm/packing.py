"""Arrays in few bytes: the bytes of each array by their place in a value, compressed with zlib (RFC 1950).

Numbers of little range differ in their lowest byte and agree in the others, so bytes of one place are compressed
together. What is packed here is mostly without repetitions: often Huffman codes alone are as small, and sooner read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]
Spec = dict[str, Sequence[str | int]]
"""Of each array its type, as numpy writes it (``<u2``), and its length."""

_TYPES = ("|u1", "<u2", "<u4", "<f4")
_LARGEST_RATIO = 1032  # of deflate: more cannot come out of so many bytes
_LEVEL = 6
_AT_ONCE = 1 << 15  # values that are worked on together: they and what comes of them stay in the processor's cache


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Spec]:
    """Each array (length,) as compressed bytes, uint8 (bytes,), and what :func:`unpack` must know about it: its type
    and its length."""
    little = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    packed = {name: np.frombuffer(_compressed(array), np.uint8) for name, array in little.items()}
    return packed, {name: (array.dtype.str, len(array)) for name, array in little.items()}


def unpack(packed: np.ndarray, kind: str | int, length: str | int) -> np.ndarray:
    """An array (length,) that :func:`pack` made into bytes. Raises ValueError where they do not stand for so many
    values of this type."""
    if kind not in _TYPES or not isinstance(length, int) or length < 0 or packed.dtype != np.uint8:
        raise ValueError(f"it holds {length} values of type {kind}")
    dtype = np.dtype(str(kind))
    size = length * dtype.itemsize
    if size > _LARGEST_RATIO * (packed.size + 1):
        raise ValueError(f"{packed.size} bytes cannot hold {length} values")
    values, stream, done = np.empty(length, f"<u{dtype.itemsize}"), zlib.decompressobj(), 0
    for piece in pieces(len(packed)):
        try:
            data = stream.decompress(packed[piece].data, size - done + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if done + len(data) <= size:
            _put(values, np.frombuffer(data, np.uint8), done)
        done += len(data)
    if done != size or not stream.eof or stream.unused_data:
        raise ValueError(f"{done} bytes stand for {length} values of type {kind}")
    return values.view(dtype)


def _put(values: np.ndarray, data: np.ndarray, begin: int) -> None:
    """Put into whole numbers their bytes from ``begin`` on: the lowest of each, then the next of each, and so on."""
    while len(data):
        place, first = divmod(begin, len(values))
        some = values[first : first + len(data)]
        if place == 0:
            some[:] = data[: len(some)]
        else:
            some |= data[: len(some)].astype(values.dtype) << (8 * place)
        data, begin = data[len(some) :], begin + len(some)


def pieces(count: int, at_once: int = _AT_ONCE) -> Iterator[slice]:
    """``count`` places, ``at_once`` of them after the other."""
    return (slice(begin, min(begin + at_once, count)) for begin in range(0, count, at_once))


def most_bytes(array: np.ndarray) -> int:
    """What :func:`pack` makes of ``array``, or somewhat more; found several times as fast."""
    return len(_deflate(_planes(array), zlib.Z_HUFFMAN_ONLY))


def differences(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``words`` (n,), of which the first ``counts[0]`` rise, then the next ``counts[1]`` and so on: of each group the
    first one, then how far each is above the one before it. (n,) int64."""
    words = words.astype(np.int64)
    result = np.diff(words, prepend=0)
    first = _firsts(counts)
    result[first] = words[first]
    return result


def sums(differences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The inverse of :func:`differences`, (n,) int64. The counts sum to n."""
    result = differences.cumsum(dtype=np.int64)
    first = _firsts(counts)
    before = result[first] - differences[first]
    result -= before.repeat(counts[counts > 0])
    return result


def _firsts(counts: np.ndarray) -> np.ndarray:
    return np.asarray((counts.cumsum() - counts)[counts > 0])


def _compressed(array: np.ndarray) -> bytes:
    planes = _planes(array)
    return min((_deflate(planes, how) for how in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)), key=len)


def _planes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array.view(np.uint8).reshape(len(array), array.dtype.itemsize).T).tobytes()


def _deflate(data: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return stream.compress(data) + stream.flush()
