"""Clipping: how far one record moves the noiseless sum that a step releases, over records sought to be the worst."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from dpcheck.engine.auditing.exact import Check
from dpcheck.engine.auditing.subject import STEEP, Pool, Subject, released
from dpcheck.engine.kinds import grouping_of
from torch import Tensor
from torch.utils import _pytree as pytree

from dpcheck.errors import DpcheckError

Sums = dict[str, Tensor]

# Far above the rounding of a float32 sum of a hundred clipped gradients.
_ROUNDING = 1e-4
# Of C, for a record: where a kink (a maximum, a ReLU at zero) falls may change with the shape of the batch.
_AGREES = 0.01


@dataclass(frozen=True)
class Victim:
    """What is put into one slot, and how to say so."""

    name: str
    plant: Callable[[Pool, int], None]


@dataclass
class Neighbours:
    """Differences that one record made, and what else was seen on the way."""

    worst: float = 0.0
    record: str = ""
    replaced: float = 0.0
    refused: list[str] = field(default_factory=list)
    wrong: float = 0.0
    wrong_record: str = ""
    states: list[dict[str, Tensor]] = field(default_factory=list)


def victims(subject: Subject) -> Iterator[Victim]:
    """Records that are ordinary, extreme, opposed, repeated, or not finite."""
    for scale in (1.0, -1.0, 1e4, -1e4, 1e-6):
        yield Victim(f"its loss times {scale:g}", _scaled(scale))
    for slope in (1e-4, 1.0, STEEP, -STEEP, 1e12, 1e18):
        yield Victim(f"a slope of {slope:g} along one coordinate", _sloped(slope))
    floats = [t for t in pytree.tree_leaves(subject.records) if isinstance(t, Tensor) and t.is_floating_point()]
    for factor in (0.0, -1.0, 100.0, 1e4) if floats else ():
        yield Victim(f"its numbers times {factor:g}", _changed(partial(torch.mul, other=factor)))
    yield Victim("the first part of another record and the rest its own", _mixed)
    yield Victim("a copy of another record", _copied)
    for bad in (float("nan"), float("inf")):
        yield Victim(f"a loss that is {bad}", _scaled(bad))
        if floats:
            yield Victim(f"numbers that are {bad}", _changed(partial(torch.full_like, fill_value=bad)))


def check_clipping(subject: Subject) -> tuple[list[Check], Sums]:
    """The checks of one record's influence, and the noiseless sum over the user's records as they are."""
    found, pool = Neighbours(), subject.pool(subject.count + 1)
    engine = subject.engine(pool, 0.0)
    rest, slot = list(range(subject.count)), subject.count
    torch.manual_seed(0)
    again = _sum(engine, rest, found)
    torch.manual_seed(0)
    base = _sum(engine, rest, found)
    torch.manual_seed(1)
    draws = _norm(_minus(_sum(engine, rest, found), base)) > _ROUNDING * subject.claim.max_grad_norm
    checks = [_repeatable(_norm(_minus(again, base)), subject)]
    _compare(subject, pool, rest, base, "the user's records", found, draws)

    def change(victim: Victim) -> Sums | None:
        """By which the victim moves the sum; None if it is refused."""
        fresh = subject.pool(subject.count + 1)
        victim.plant(fresh, slot)
        pool.records, pool.source, pool.scale, pool.slope = fresh.records, fresh.source, fresh.scale, fresh.slope
        torch.manual_seed(0)
        # A model that draws at random keeps its draws where the place stays and the record counts for nothing.
        without = _without(engine, pool, rest, slot, found) if draws else base
        torch.manual_seed(0)
        try:
            total = _sum(engine, [*rest, slot], found)
        except DpcheckError:
            found.refused.append(victim.name)
            return None
        moves = _minus(total, without)
        if not _norm(moves) <= found.worst:
            found.worst, found.record = _norm(moves), f"{victim.name}, of records {subject.chosen}"
        _compare(subject, pool, [*rest, slot], total, victim.name, found, draws)
        return moves

    moved = [moves for victim in victims(subject) if (moves := change(victim)) is not None]
    search(change, subject.count, subject.tries)
    for i, first in enumerate(moved):
        found.replaced = max([found.replaced, *(_norm(_minus(first, second)) for second in moved[:i])])
    checks += [_removal(subject, found), _state(found)]
    if not draws:
        checks.append(_reference(subject, found))
    return checks, base


def search(change: Callable[[Victim], Sums | None], records: int, tries: int) -> None:
    """A random search for the record, the scale of its loss and the slope of its canary that move the sum the most.

    Each try changes the best so far by random factors, and every third begins anew.
    """
    draw = random.Random(0)
    best, most = (0, 1.0, 0.0), 0.0
    for i in range(tries):
        source, scale, slope = best
        if i % 3 == 0:
            source, scale = draw.randrange(records), draw.choice((-1, 1)) * 10 ** draw.uniform(-3, 5)
            slope = draw.choice((0.0, 10 ** draw.uniform(-4, 6)))
        scale, slope = scale * 2 ** draw.gauss(0, 1), slope * 2 ** draw.gauss(0, 1)
        name = f"the loss of number {source} times {scale:.6g}, a slope of {slope:.6g} along one coordinate"
        moves = change(Victim(name, _made(source, scale, slope)))
        if moves is not None and _norm(moves) > most:
            best, most = (source, scale, slope), _norm(moves)


def _without(engine: Any, pool: Pool, rest: list[int], slot: int, found: Neighbours) -> Sums:
    planted = [t[slot].clone() for t in (pool.source, pool.scale, pool.slope)]
    pool.source[slot] = pool.scale[slot] = pool.slope[slot] = 0
    sums = _sum(engine, [*rest, slot], found)
    pool.source[slot], pool.scale[slot], pool.slope[slot] = planted
    return sums


def _sum(engine: Any, slots: list[int], found: Neighbours) -> Sums:
    sums = released(engine, slots)
    found.states.append({name: b.detach().clone() for name, b in engine.model.named_buffers()})
    found.states[-1] |= {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    found.states[1:] = found.states[1:] if _differ(found.states[0], found.states[-1]) else []
    return sums


def _differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [name for name, value in first.items() if not torch.equal(_words(value), _words(second[name]))]


def _words(t: Tensor) -> Tensor:
    return torch.view_as_real(t).nan_to_num() if t.is_complex() else t.nan_to_num() if t.is_floating_point() else t


def _repeatable(difference: float, subject: Subject) -> Check:
    ok = difference <= _ROUNDING * subject.claim.max_grad_norm
    return Check("clipping", "the sum of the same records is the same", ok, f"differs by {difference:.3g}")


def _removal(subject: Subject, found: Neighbours) -> Check:
    bound = subject.claim.max_grad_norm
    ok = found.worst <= bound * (1 + _ROUNDING) and found.replaced <= 2 * bound * (1 + _ROUNDING)
    refused = f"; refused: {', '.join(found.refused)}" if found.refused else ""
    measured = (
        f"at most {found.worst / bound:.6f} C when a record is removed, {found.replaced / bound:.6f} C when it is "
        f"replaced (C = {bound:g}){refused}"
    )
    return Check("clipping", "one record moves the sum by at most C", ok, measured, record=found.record)


def _state(found: Neighbours) -> Check:
    changed = _differ(found.states[0], found.states[-1])
    measured = f"changed by a step: {', '.join(changed[:5])}" if changed else "none changed"
    return Check("clipping", "buffers and parameters change through the optimizer only", not changed, measured)


def _reference(subject: Subject, found: Neighbours) -> Check:
    ok = found.wrong <= _AGREES * subject.claim.max_grad_norm
    measured = f"differs by {found.wrong / subject.claim.max_grad_norm:.2g} C for each record"
    return Check("clipping", "the sum is that of each record alone", ok, measured, record=found.wrong_record)


def _compare(
    subject: Subject, pool: Pool, slots: list[int], total: Sums, name: str, found: Neighbours, draws: bool
) -> None:
    if draws:
        return
    wrong = _norm(_minus(total, alone(subject, pool, slots))) / len(slots)
    if not wrong <= found.wrong:
        found.wrong, found.wrong_record = wrong, name


def alone(subject: Subject, pool: Pool, slots: list[int]) -> Sums:
    """The clipped sum by plain autograd, one record at a time; no code of the engine's clippers is used."""
    parameters = {name: p for name, p in subject.model.named_parameters() if p.requires_grad}
    grouping, bound = grouping_of(subject.kind, parameters), subject.claim.max_grad_norm
    sums = {name: torch.zeros(_real(p).numel(), dtype=torch.float64) for name, p in parameters.items()}
    for slot in slots:
        loss = subject.loss_fn(subject.model, pool.collate([slot])).sum()
        raw = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(sums[name]) if g is None else _real(g).detach().double().flatten().cpu()
            for name, g in zip(parameters, raw, strict=True)
        }
        for group, share in enumerate(grouping.shares):
            own = [name for name in parameters if grouping.of[name] == group]
            norm = _norm({name: grads[name] for name in own})
            gamma = grouping.gamma
            factor = min(1.0, bound * share / max(norm, 1e-300)) if gamma is None else bound / max(norm + gamma, 1e-12)
            for name in own:
                sums[name] += factor * grads[name]
    return sums


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def _minus(first: Sums, second: Sums) -> Sums:
    return {name: value - second[name] for name, value in first.items()}


def _norm(sums: Sums) -> float:
    return math.sqrt(math.fsum(float(value.square().sum()) for value in sums.values()))


def _scaled(scale: float) -> Callable[[Pool, int], None]:
    def plant(pool: Pool, slot: int) -> None:
        pool.source[slot], pool.scale[slot] = 0, scale

    return plant


def _made(source: int, scale: float, slope: float) -> Callable[[Pool, int], None]:
    def plant(pool: Pool, slot: int) -> None:
        pool.source[slot], pool.scale[slot], pool.slope[slot] = source, scale, slope

    return plant


def _sloped(slope: float) -> Callable[[Pool, int], None]:
    def plant(pool: Pool, slot: int) -> None:
        pool.source[slot], pool.slope[slot] = 0, slope

    return plant


def _changed(change: Callable[[Tensor], Tensor]) -> Callable[[Pool, int], None]:
    """Changes the numbers of the first record."""

    def plant(pool: Pool, slot: int) -> None:
        _put(pool, slot, lambda k, t: change(t[0]) if t.is_floating_point() else t[0])

    return plant


def _mixed(pool: Pool, slot: int) -> None:
    _put(pool, slot, lambda k, t: t[0] if k else t[-1])


def _put(pool: Pool, slot: int, value: Callable[[int, Tensor], Tensor]) -> None:
    """One record more, of which ``value`` makes the k-th tensor from that of all records, in a slot."""
    leaves, spec = pytree.tree_flatten(pool.records)
    pool.source[slot] = next(len(t) for t in leaves if isinstance(t, Tensor))
    grown = [torch.cat([t, value(k, t)[None]]) if isinstance(t, Tensor) else t for k, t in enumerate(leaves)]
    pool.records = pytree.tree_unflatten(grown, spec)


def _copied(pool: Pool, slot: int) -> None:
    pool.source[slot] = 0
