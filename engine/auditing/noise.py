"""Noise: whether every coordinate of every release has it, of the claimed size, and each its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from dpcheck.engine.auditing.effort import Effort
from dpcheck.engine.auditing.exact import Check, Floats, chi_square, correlation, judged, kolmogorov, normal
from dpcheck.engine.auditing.sensitivity import Sums
from dpcheck.engine.auditing.subject import Subject, released
from scipy import fft, special

# Values for the Kolmogorov-Smirnov test.
_VALUES = 200_000
_FEWEST, _MOST = 6, 40
# In standard deviations: above the rounding of a float32.
_NEAR = 1e-6
_SHORTEST = 8


def check_noise(subject: Subject, base: Sums, effort: Effort) -> list[Check]:
    """Releases of no record and of the user's records, less their noiseless sum ``base``, against N(0, (sigma C)^2).

    Sigma and C are what the ledger has of each step.
    """
    sizes = {name: len(values) for name, values in base.items()}
    wanted = effort.coordinates // sum(sizes.values()) + 1
    repeats = max(_FEWEST, min(_MOST, wanted))
    noises, ledger = [], []
    for i in range(repeats):
        if i in (0, repeats // 2):  # a second run, whose noise must be its own
            engine = subject.engine(subject.pool(), subject.claim.noise_multiplier)
        slots = [] if i % 2 else list(range(subject.count))
        torch.manual_seed(0)
        before = engine.optimizer.taken, engine.ledger.steps()
        sums = released(engine, slots)
        record = engine.ledger.entries[-1][0]
        std = record.noise_multiplier * record.max_grad_norm
        # A step that is recorded as one without noise is none of those that are claimed.
        counted = engine.ledger.steps() - before[1] if std else 0
        ledger.append((engine.optimizer.taken - before[0], counted))
        std = std or subject.claim.noise_multiplier * subject.claim.max_grad_norm
        rest = {name: values - base[name] if slots else values for name, values in sums.items()}
        noises.append({name: values.numpy() / std for name, values in rest.items()})
    return _judged(noises, sizes, ledger)


def _judged(noises: list[dict[str, Floats]], sizes: dict[str, int], ledger: list[tuple[int, int]]) -> list[Check]:
    shown = f"{len(noises)} releases of {sum(sizes.values())} coordinates"
    wrong = [pair for pair in ledger if pair != (1, 1)]
    counted = f"{len(ledger) - len(wrong)} of {len(ledger)}" + (f"; (releases, steps) {wrong[0]}" if wrong else "")
    return [
        Check("noise", "each release is one step of the ledger, with records or without", not wrong, counted),
        _sizes(noises, sizes, shown),
        _rows(noises, sizes),
        _shape(noises),
        _spacing(noises),
        _steps_apart(noises, sizes),
        _parameters_apart(noises, sizes),
        _places_apart(noises),
    ]


def _sizes(noises: list[dict[str, Floats]], sizes: dict[str, int], shown: str) -> Check:
    squares = {name: float(sum(np.square(n[name]).sum() for n in noises)) for name in sizes}
    sums = {name: float(sum(n[name].sum() for n in noises)) for name in sizes}
    degrees = {name: len(noises) * size for name, size in sizes.items()}
    p = {name: float(chi_square(squares[name], degrees[name])) for name in sizes}
    means = {name: float(normal(sums[name] / degrees[name] ** 0.5)) for name in sizes}
    worst = min(sizes, key=lambda name: min(p[name], means[name]))
    total = (sum(squares.values()) / sum(degrees.values())) ** 0.5
    own = (squares[worst] / degrees[worst]) ** 0.5
    measured = f"{total:.4f} of the claimed standard deviation in {shown}; {worst}: {own:.4f}"
    return judged(
        "noise", "every parameter has noise of sigma C", 2 * len(sizes) * min(p[worst], means[worst]), measured
    )


def _rows(noises: list[dict[str, Floats]], sizes: dict[str, int]) -> Check:
    """Each coordinate over the steps, and runs of 16 and of 64 neighbours: rows without noise hide in a whole."""
    least, where, count = 1.0, "", 0
    for name, size in sizes.items():
        squares = sum(np.square(n[name]) for n in noises)
        for length in (1, 16, 64):
            cut = size // length * length
            if not cut:
                continue
            sums = np.asarray(squares)[:cut].reshape(-1, length).sum(1)
            p, count = chi_square(sums, len(noises) * length), count + cut // length
            if p.min() < least:
                first = int(p.argmin()) * length
                least, where = float(p.min()), f"{name}, coordinates {first} to {first + length - 1}"
    return judged("noise", "every coordinate has noise", least * count, f"least likely: {where}")


def _shape(noises: list[dict[str, Floats]]) -> Check:
    values = np.concatenate([part for n in noises for part in n.values()])
    values = np.sort(values if len(values) <= 2 * _VALUES else values[:: len(values) // _VALUES])
    p = kolmogorov(values, special.ndtr(values))
    return judged("noise", "it is Gaussian", p, f"Kolmogorov-Smirnov on {len(values)} values")


def _spacing(noises: list[dict[str, Floats]]) -> Check:
    """Values on a coarse grid fall on each other; of 400,000 normal ones one in seven has a neighbour so near.

    Only of releases without records: taking a sum off blurs.
    """
    values = np.concatenate([part for n in noises[1::2] for part in n.values()])[: 2 * _VALUES]
    share = float(np.mean(np.diff(np.sort(values)) < _NEAR)) if len(values) > 1 else 0.0
    shown = f"{share:.1%} of {len(values)} values have a neighbour within {_NEAR:g} standard deviations"
    return Check("noise", "it lies on no coarse grid", share <= 0.5, shown)


def _steps_apart(noises: list[dict[str, Floats]], sizes: dict[str, int]) -> Check:
    least, where, count = 1.0, "", 0
    for name in (name for name, size in sizes.items() if size >= _SHORTEST):
        values = np.stack([n[name] for n in noises])
        r = _cosines(values @ values.T)[np.triu_indices(len(values), 1)]
        p, count = correlation(r, sizes[name]), count + len(r)
        if p.min() < least:
            least, where = float(p.min()), f"largest correlation {r[p.argmin()]:.4f}, in {name}"
    return judged("noise", "no noise is used in two steps or runs", least * max(count, 1), where)


def _parameters_apart(noises: list[dict[str, Floats]], sizes: dict[str, int]) -> Check:
    least, where, count = 1.0, "", 0
    long = sorted((name for name, size in sizes.items() if size >= _SHORTEST), key=lambda n: -sizes[n])[:60]
    for first, second in itertools.combinations(long, 2):
        length = min(sizes[first], sizes[second])
        r = np.array([_cosine(n[first][:length], n[second][:length]) for n in noises[:4]])
        p, count = correlation(r, length), count + len(r)
        if p.min() < least:
            least, where = float(p.min()), f"largest correlation {r[p.argmin()]:.4f}, of {first} and {second}"
    return judged("noise", "no noise is used in two parameters", least * max(count, 1), where or "one parameter")


def _places_apart(noises: list[dict[str, Floats]]) -> Check:
    """All shifts of all coordinates in a row, within a step and against the step before, by Fourier transforms."""
    least, count, where = 1.0, 0, ""
    lines = [np.concatenate(list(n.values())) for n in noises[:4]]
    length = len(lines[0])
    size = fft.next_fast_len(2 * length, real=True)
    transforms = [fft.rfft(line, size) for line in lines]
    for (i, a), (j, b) in itertools.combinations_with_replacement(enumerate(transforms), 2):
        products = fft.irfft(a * b.conj(), size)
        overlaps = np.concatenate([length - np.arange(length), np.zeros(size - 2 * length + 1), np.arange(1, length)])
        # With few terms a sum of products has longer tails than a normal one.
        enough = overlaps >= 400
        enough[0] &= i != j
        if not enough.any():
            continue
        z = products[enough] / np.sqrt(overlaps[enough])
        p, count = normal(z), count + len(z)
        if p.min() < least:
            shift = int(np.flatnonzero(enough)[p.argmin()])
            least, where = float(p.min()), f"least likely: steps {i} and {j}, shifted by {min(shift, size - shift)}"
    return judged("noise", "no noise is used in two places", least * max(count, 1), where or "too few coordinates")


def _cosines(gram: Any) -> Floats:
    # What has no length is no noise, and as good as equal.
    lengths = np.sqrt(np.diag(gram))
    products = np.outer(lengths, lengths)
    return np.asarray(np.divide(gram, products, out=np.ones_like(products), where=products > 0))


def _cosine(a: Floats, b: Floats) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 1.0
