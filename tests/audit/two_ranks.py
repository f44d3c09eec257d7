"""Detectors on two ranks of torch.distributed (gloo), each in a process of its own, with a fault planted in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectors import part_sees
from faults import several
from tiny import engine

from dpcheck.errors import DpcheckError

# Untyped, for builds of torch without it.
_dist: Any = torch.distributed
# What can fail on one rank only, so that the other waits for it.
_PATIENCE = timedelta(seconds=60)
# Its parts, each on its own.
AUDIT = ("clipping", "noise", "sampling")


def suite_sees() -> str:
    """Which of two invariants does not hold: replicas stay equal, and the sum is that of one process."""
    torch.manual_seed(0)
    try:
        _replicas_are_equal()
        _the_sum_is_that_of_the_draw()
    except (AssertionError, DpcheckError) as error:
        return str(error)
    return ""


def _equal_everywhere(value: torch.Tensor) -> bool:
    found: list[Any] = [None, None]
    _dist.all_gather_object(found, value)
    return torch.equal(*found)


def _replicas_are_equal() -> None:
    trained = engine(steps=3)
    for batch in trained:
        same = _equal_everywhere(batch.indices)
        trained.step(batch)
        weights = torch.nn.utils.parameters_to_vector(trained.model.parameters()).detach()
        assert _equal_everywhere(weights), "the replicas are not equal"
        assert same, "the draws are not equal"


def _the_sum_is_that_of_the_draw() -> None:
    trained = engine(steps=3, noise_multiplier=0.0, expected_batch_size=30, max_grad_norm=1.5)
    x = trained._loader.dataset.tensors[0]
    for batch in trained:
        trained.step(batch)
        own = x[batch.indices]
        expected = (own * (1.5 / own.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0) / 30
        released = torch.cat([p.grad.flatten() for p in trained.model.parameters()])
        assert torch.allclose(released, expected, atol=1e-5), "the sum is not that of one process"


def sees(detector: str) -> str:
    """What a part of the audit, or the suite, says on this rank."""
    return suite_sees() if detector == "suite" else part_sees(detector, {})


def main(rank: int, folder: str, cases: Sequence[tuple[str, str]]) -> None:
    """Runs each (fault, detector), the fault "" being none, and leaves what was said in a file."""
    torch.set_num_threads(1)
    faults = {fault.what: fault for fault in several.FAULTS}
    found: dict[tuple[str, str], str] = {}
    for number, (what, detector) in enumerate(cases):
        store = f"file://{folder}/store{number}"
        _dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=_PATIENCE)
        try:
            found[what, detector] = _with(faults.get(what), lambda d=detector: sees(d))
        finally:
            _dist.destroy_process_group()
    torch.save(found, Path(folder) / f"found{rank}.pt")


def _with(fault: Any, run: Callable[[], str]) -> str:
    if fault is None:
        return run()
    with fault.planted():
        return run()


def trial(folder: Path, cases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """The same, from one process: what either rank said."""
    torch.multiprocessing.start_processes(main, (str(folder), list(cases)), nprocs=2, start_method="spawn")
    first, second = (torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in range(2))
    return {case: first[case] or second[case] for case in first}
