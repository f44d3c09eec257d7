"""The clipping norm that follows a quantile of the norms: see :class:`dpcheck.engine.kinds.AdaptiveQuantile`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpcheck.engine.accounting import other_noise
from dpcheck.engine.kinds import AdaptiveQuantile
from dpcheck.engine.streams import Stream

from dpcheck.errors import DpcheckError

# How far the norm may go from the first: further, exp and float32 would end.
_DRIFT = 1e6
_LARGEST_EXPONENT = 50.0


def settled_count_noise(kind: AdaptiveQuantile, noise_multiplier: float, expected_batch_size: int) -> float:
    """The given noise on the count, or a twentieth of the batch (Andrew et al., arXiv 1905.03871), but at least 2 z.

    Raises:
        DpcheckError: if the given noise leaves none of z for the gradients.
    """
    if kind.count_noise is None:
        return max(expected_batch_size / 20, 2 * noise_multiplier)
    if 2 * kind.count_noise <= noise_multiplier:
        raise DpcheckError(
            f"count_noise={kind.count_noise:g} is not more than half the noise multiplier {noise_multiplier:g}: the "
            "count alone would spend more than the whole step",
            where="clipping",
            next=f"pass AdaptiveQuantile(count_noise={2 * noise_multiplier:g}), or leave it out",
        )
    return float(kind.count_noise)


def gradient_noise(noise_multiplier: float, count_noise: float | None) -> float:
    """z of the gradients, for which gradients and count together have ``noise_multiplier`` (theorem 1).

    One record changes the count by 1/2, so that its noise multiplier is ``2 * count_noise``.
    """
    return noise_multiplier if count_noise is None else other_noise(noise_multiplier, 2 * count_noise)


@dataclass(frozen=True)
class Count:
    """How many of ``drawn`` samples have a gradient no longer than the clipping norm. **Not private.**"""

    unclipped: int
    drawn: int

    def released(self, expected: int, count_noise: float, stream: Stream) -> float:
        """A private estimate of the share of unclipped samples, relative to the public ``expected`` batch size.

        Noise of standard deviation ``count_noise`` on ``unclipped - drawn / 2``, of which one sample changes 1/2.
        """
        # Twice that is a whole number, so rounding the noise is post-processing and no low bits of floats are released.
        noise = round(float(stream.normals(1)[0]) * 2 * count_noise)
        return (2 * self.unclipped - self.drawn + noise) / 2 / expected + 0.5


def next_norm(kind: AdaptiveQuantile, norm: float, first: float, share: float) -> float:
    """The clipping norm after a step with ``norm``, of what was released only."""
    exponent = -kind.learning_rate * (share - kind.quantile)
    change = math.exp(max(-_LARGEST_EXPONENT, min(_LARGEST_EXPONENT, exponent)))
    return max(first / _DRIFT, min(first * _DRIFT, norm * change))
