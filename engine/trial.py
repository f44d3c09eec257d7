"""The test of a declaration: arguments are drawn until one refutes it, and the smallest such one is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpcheck.errors import DpcheckError

if TYPE_CHECKING:
    from dpcheck.engine.declared import Declaration

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# What another row is multiplied with: what leaks is then large.
_LARGE = 1e4


@dataclass(frozen=True)
class Complaint:
    """What is wrong, and a program that shows it."""

    what: str
    script: str


def complaint_of(declaration: Declaration, inputs: Any, examples: int) -> Complaint | None:
    """The smallest arguments among those drawn that refute the declaration; ``None`` if none does.

    Raises:
        DpcheckError: if hypothesis is not installed, or ``inputs`` draws no arguments for the op.
    """
    try:
        from hypothesis import HealthCheck, Phase, find, settings
        from hypothesis.errors import NoSuchExample
    except ModuleNotFoundError as error:
        raise DpcheckError("registering an op draws arguments", next="pip install 'dpcheck[testing]'") from error
    chosen = settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            smallest = find(
                inputs, lambda args: wrong_on(declaration, args) is not None, settings=chosen, random=random.Random(0)
            )
            what = wrong_on(declaration, smallest)
    except NoSuchExample:
        return None
    assert what is not None
    given = ",\n    ".join(map(_source, smallest))
    return Complaint(what, f"import torch\ntorch.ops.{declaration.op}(\n    {given},\n)")


def _source(arg: Any) -> str:
    if not isinstance(arg, Tensor):
        return repr(arg)
    numbers = str(arg.tolist()).replace("nan", "float('nan')").replace("inf", "float('inf')")
    return f"torch.tensor({numbers}, dtype={arg.dtype})"


def wrong_on(declaration: Declaration, args: Sequence[Any]) -> str | None:
    """What is wrong with the declaration for these arguments, as they are, in float32 or stored in another order."""
    try:
        found = next(_objections(declaration, args), None)
        if found is None:
            turned = [_turned(arg) if isinstance(arg, Tensor) else arg for arg in args]
            straight, other = declaration.results(*args), declaration.results(*turned)
            if not all(_close(b, a) for a, b in zip(straight, other, strict=True) if a is not None):
                return "it gives something else where the axes of an argument are stored in another order"
    except Exception as error:
        return f"it raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return found if found is not None else _wrong_in_float32(declaration, args)


def _turned(t: Tensor) -> Tensor:
    """The same numbers, the last axis first in memory."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1) if t.dim() > 1 else t


def _wrong_in_float32(declaration: Declaration, args: Sequence[Any]) -> str | None:
    single = [arg.float() if isinstance(arg, Tensor) and arg.dtype is torch.float64 else arg for arg in args]
    try:
        found = next(_objections(declaration, single), None)
    except Exception:
        # An op need not run in every dtype.
        return None
    return None if found is None else f"in float32, {found}"


def _objections(declaration: Declaration, args: Sequence[Any]) -> Iterator[str]:
    at = declaration.by_row(args)
    lengths = {args[i].shape[axis] for i, axis in at}
    if len(lengths) != 1:
        yield f"the arguments have {sorted(lengths)} rows"
    (count,) = lengths
    before = [arg.clone() if isinstance(arg, Tensor) else arg for arg in args]
    together, again = declaration.results(*args), declaration.results(*args)
    if not all(map(_same, before, args)):
        yield "it writes to its arguments"
    if not all(map(_same, together, again)):
        yield "two calls differ"
    alone = [declaration.results(*_rows(declaration, args, [j])) for j in range(count)]
    for k, role in enumerate(declaration.outputs):
        if together[k] is None:
            continue
        single = [results[k] for results in alone]
        if role == "sum":
            if not _close(together[k], torch.stack(single).sum(0), torch.stack(single).abs().sum(0)):
                yield f"output {k} is not the sum of what each row gives alone"
        elif role is None:
            if not all(_close(together[k], one) for one in single):
                yield f"output {k} depends on the rows"
        elif not all(_close(together[k].select(role, j), one.select(role, 0)) for j, one in enumerate(single)):
            yield f"row j of output {k} (axis {role}) is not what row j of the arguments gives alone"
    yield from _leaks(declaration, args, together, count)
    yield from _samplers(declaration, args, count)


def _leaks(declaration: Declaration, args: Sequence[Any], together: Sequence[Any], count: int) -> Iterator[str]:
    """Rows of an output that move with another row of the arguments, by however little."""
    for j in range(count) if count > 1 else ():
        others = [i for i in range(count) if i != j]
        for how in ("large", "nan", "swapped"):
            moved = declaration.results(*_changed(declaration, args, j, others[0], how))
            for k, role in enumerate(declaration.outputs):
                if isinstance(role, int) and together[k] is not None:
                    pick = torch.tensor(others)
                    if not _same(together[k].index_select(role, pick), moved[k].index_select(role, pick)):
                        yield f"other rows of output {k} change with row {j} of the arguments"
                elif role is None and together[k] is not None and not _same(together[k], moved[k]):
                    yield f"output {k} changes with row {j} of the arguments"


def _changed(declaration: Declaration, args: Sequence[Any], row: int, other: int, how: str) -> list[Any]:
    """The arguments with one row changed; whole numbers take those of another row, as their range is unknown."""
    changed = list(args)
    for i, axis in declaration.by_row(args):
        t = args[i].clone()
        if not t.is_floating_point() or how == "swapped":
            t.select(axis, row).copy_(args[i].select(axis, other))
        elif how == "large":
            t.select(axis, row).mul_(_LARGE).add_(1)
        else:
            t.select(axis, row).fill_(float("nan"))
        changed[i] = t
    return changed


def _samplers(declaration: Declaration, args: Sequence[Any], count: int) -> Iterator[str]:
    """Every way to give rows to samples of equal size: rows of a sample together, apart, or in runs."""
    splits = [
        (count // (batch * inner), batch, inner)
        for batch in range(1, count + 1)
        for inner in range(1, count // batch + 1)
        if count % (batch * inner) == 0
    ]
    for k, role in enumerate(declaration.outputs):
        for split in splits if role == "sum" else ():
            yield from _sampler(declaration, args, k, split)


def _sampler(declaration: Declaration, args: Sequence[Any], k: int, split: tuple[int, int, int]) -> Iterator[str]:
    outer, batch, inner = split
    owner = (torch.arange(outer * batch * inner) // inner) % batch
    rows = [(owner == b).nonzero().flatten().tolist() for b in range(batch)]
    expected = torch.stack([declaration.results(*_rows(declaration, args, own))[k] for own in rows])
    sampler, cut = declaration.sampler(k), declaration.blocks(args, *split)
    where = f"for output {k} with {batch} samples of {outer * inner} rows"
    each = sampler.per_sample(*cut)
    if not _close(each, expected):
        yield f"per_sample differs from the op on the rows of one sample, {where}"
    if sampler.square_norms is not None:
        squares = expected.reshape(batch, -1).double().square().sum(1)
        if not _close(sampler.square_norms(*cut).double(), squares, tolerance=_tolerance(expected)):
            yield f"square_norms differs from the norms of what per_sample should be, {where}"
    if sampler.weighted is not None:
        factors = torch.linspace(0.3, 1.0, batch, dtype=expected.dtype)
        weighted = torch.einsum("b,b...->...", factors, expected)
        if not _close(sampler.weighted(factors, *cut), weighted, expected.abs().sum(0)):
            yield f"weighted differs from the sum of factors times contributions, {where}"


def _rows(declaration: Declaration, args: Sequence[Any], picks: list[int]) -> list[Any]:
    chosen = list(args)
    for i, axis in declaration.by_row(args):
        chosen[i] = args[i].index_select(axis, torch.tensor(picks))
    return chosen


def _same(a: Any, b: Any) -> bool:
    """Bit for bit, but for signs of zeros."""
    if not isinstance(a, Tensor):
        return bool(a == b)
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _tolerance(t: Tensor) -> float:
    return _TOLERANCE.get(t.dtype, 0.0)


def _close(value: Tensor, reference: Tensor, scale: Tensor | None = None, tolerance: float | None = None) -> bool:
    """Up to rounding, relative to the largest entry (of ``scale``)."""
    if value.shape != reference.shape or value.dtype != reference.dtype:
        return False
    if not value.is_floating_point() or not value.numel():
        return bool((value == reference).all())
    size = float((reference if scale is None else scale).abs().max())
    allowed = (_tolerance(reference) if tolerance is None else tolerance) * size
    return float((value.double() - reference.double()).abs().max()) <= allowed
