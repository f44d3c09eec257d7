"""Private random streams: keyed by the operating system, never by torch's or NumPy's global generators."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dpcheck.engine.ziggurat import Ziggurat
from scipy.special import ndtri

from dpcheck.errors import DpcheckError

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


class Stream(Protocol):
    """An endless source of independent random values; each value is given out once."""

    def words(self, count: int) -> Words:
        """``count`` uniform 64-bit words, shape [count]."""

    def normals(self, count: int) -> Floats:
        """``count`` standard normal values in float64, shape [count]."""

    def fill(self, out: Floats) -> None:
        """The same as ``normals(len(out))``, written into ``out``, which saves fresh memory."""

    def part(self, index: int) -> Stream:
        """A stream independent of this one and of its other parts; ask once for each, as for the stream itself."""


class KeyedStream:
    """A fast stream from a key of 256 bits: SFC64, normals by the ziggurat method (:class:`Ziggurat`).

    It passes statistical tests, but it is no cipher; :class:`SystemStream` is one. ``torch.Generator`` is not used: on
    the CPU it keeps 32 bits of its seed, so that after 2**16 seeds two are likely to give the same noise.
    """

    def __init__(self, key: bytes) -> None:
        # A pool of 8 words of 32 bits keeps the whole key; NumPy's default keeps half of it.
        self._key = key
        self._bits = np.random.SFC64(np.random.SeedSequence(int.from_bytes(key), pool_size=8))
        self._ziggurat = Ziggurat(self._bits)

    def words(self, count: int) -> Words:
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def normals(self, count: int) -> Floats:
        values = np.empty(count)
        self.fill(values)
        return values

    def fill(self, out: Floats) -> None:
        self._ziggurat.fill(out)

    def part(self, index: int) -> Stream:
        return KeyedStream(hashlib.sha256(self._key + f"part {index}".encode()).digest())


class SystemStream:
    """The operating system's cryptographic stream (``os.urandom``)."""

    def words(self, count: int) -> Words:
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)

    def normals(self, count: int) -> Floats:
        first = self.words(count)
        wide = (first >> np.uint64(1)) < np.uint64(2**53)
        return normals_from_words(first, self.words(int(wide.sum())))

    def fill(self, out: Floats) -> None:
        out[:] = self.normals(len(out))

    def part(self, index: int) -> Stream:
        return self


def normals_from_words(first: Words, second: Words) -> Floats:
    """Standard normals by inversion, with a tail as fine as its middle.

    Args:
        first: one word for each value, shape [n]: its lowest bit is the sign, the other 63 the tail probability.
        second: shape [m], one more word for each of the m first words whose 63 bits are below 2**53, in order:
            without it the smallest probability would be 2**-64 and the values near it would lie on a coarse grid.

    Returns:
        float64, shape [n]. Every tail probability has the full relative precision of a double, down to 2**-129.
    """
    upper = first >> np.uint64(1)
    tail = (upper.astype(np.float64) + 0.5) * 2.0**-64
    narrow = np.flatnonzero(upper < np.uint64(2**53))
    fraction = (second.astype(np.float64) + 0.5) * 2.0**-64
    tail[narrow] = (upper[narrow].astype(np.float64) + fraction) * 2.0**-64
    magnitude = -ndtri(tail)
    return np.asarray(np.where(first & np.uint64(1), magnitude, -magnitude), dtype=np.float64)


class Streams(Protocol):
    """Independent streams by purpose and step."""

    def stream(self, purpose: str, step: int) -> Stream:
        """The stream for one purpose in one step. Ask once: the same pair may give the same values again."""


class KeyedStreams:
    """Streams derived from one key with SHA-256, one for each purpose and step.

    Args:
        key: 32 bytes. They are held in memory only and never saved: who knows them can subtract the noise.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._process = os.getpid()

    @classmethod
    def private(cls) -> KeyedStreams:
        """Streams under a new key from ``os.urandom``."""
        return cls(os.urandom(32))

    @classmethod
    def not_private(cls, seed: int) -> KeyedStreams:
        """Streams that anybody who knows ``seed`` can repeat."""
        return cls(hashlib.sha256(f"dpcheck, not private: {seed}".encode()).digest())

    def stream(self, purpose: str, step: int) -> Stream:
        if os.getpid() != self._process:
            raise DpcheckError(
                "the engine was copied to another process by a fork: both would add the same noise",
                next="construct PrivacyEngine in the process that trains",
            )
        return KeyedStream(hashlib.sha256(self._key + f"{purpose}:{step}".encode()).digest())

    def __reduce__(self) -> str:
        raise DpcheckError(
            "the engine's noise key cannot be copied or pickled: a copy would add the same noise again",
            next="save engine.state_dict(), and load it into a new PrivacyEngine",
        )


class SystemStreams:
    """Streams that all read the operating system's generator, which never repeats and has no key to keep."""

    def stream(self, purpose: str, step: int) -> Stream:
        return SystemStream()


def streams_of(seed: int | None, secure: bool) -> Streams:
    """New streams: of the operating system, under a new key, or those of a seed, which are not private."""
    if secure:
        return SystemStreams()
    return KeyedStreams.private() if seed is None else KeyedStreams.not_private(seed)
