"""Full disks, dying workers, bad records, changed clocks and seeds, and checkpoints that somebody touched."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from dpcheck.engine.checkpoint import load_checkpoint, save_checkpoint, write_state
from dpcheck.engine.ledger import Ledger
from tiny import Closed, Line, engine
from torch import nn

from dpcheck.errors import DpcheckError


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def vector(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("extra", [0, 1, 40])
def test_a_full_disk_stops_a_step_before_it_looks_at_records(tmp_path: Path, extra: int) -> None:
    looked = []

    class Watched(Closed):
        def before(self, batch: Any) -> None:
            looked.append(len(batch[0]))

    trained = engine(ledger=tmp_path / "ledger", clipper=Watched, physical_batch_size=40)
    for batch, _ in zip(trained, range(3), strict=False):
        trained.step(batch)
    size, weights, looks = (tmp_path / "ledger").stat().st_size, vector(trained.model), len(looked)
    with full_disk(size + extra), pytest.raises(DpcheckError, match="cannot be written") as raised:
        trained.step(next(iter(trained)))
    assert raised.value.next
    assert len(looked) == looks
    assert torch.equal(vector(trained.model), weights)
    assert (tmp_path / "ledger").stat().st_size == size
    # With room again it goes on, and the file is whole.
    trained.step(next(iter(trained)))
    assert Ledger(tmp_path / "ledger").steps() == trained.ledger.steps() == 4


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    trained = engine()
    save_checkpoint(trained, tmp_path / "run.pt")
    trained.step(next(iter(trained)))
    with full_disk(100), pytest.raises(DpcheckError, match="cannot be written"):
        save_checkpoint(trained, tmp_path / "run.pt")
    with full_disk(100), pytest.raises(DpcheckError, match="cannot be written"):
        write_state(tmp_path / "weights.pt", trained.model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    other = engine()
    load_checkpoint(other, tmp_path / "run.pt")
    assert other.ledger.steps() == 0


def test_a_checkpoint_brings_back_model_optimizer_and_run(tmp_path: Path) -> None:
    first = engine()
    for batch, _ in zip(first, range(4), strict=False):
        first.step(batch)
    save_checkpoint(first, tmp_path / "run.pt")
    second = engine()
    load_checkpoint(second, tmp_path / "run.pt")
    assert torch.equal(vector(first.model), vector(second.model))
    assert second.run == first.run and second.steps_taken == 4
    momentum = [state["momentum_buffer"] for state in first.optimizer.state.values()]
    for a, b in zip(momentum, [state["momentum_buffer"] for state in second.optimizer.state.values()], strict=True):
        assert torch.equal(a, b)
    second.step(next(iter(second)))
    assert second.steps_taken == 5


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "empty", "a pickle", "missing", "another model"])
def test_a_checkpoint_that_was_touched_is_refused(tmp_path: Path, how: str) -> None:
    path, trained = tmp_path / "run.pt", engine()
    save_checkpoint(trained, path)
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "a pickle":
        torch.save({"engine": Evil()}, path)
        content = bytearray(path.read_bytes())
    changed = {"cut": content[:-10], "longer": content + b"x", "empty": b""}.get(how, content)
    path.write_bytes(changed)
    if how == "missing":
        path.unlink()
    model = Line()
    if how == "another model":
        model.b = nn.Parameter(torch.zeros(4))
    other = engine(model=model)
    weights = vector(other.model)
    with pytest.raises(DpcheckError):
        load_checkpoint(other, path)
    assert torch.equal(vector(other.model), weights)
    assert other.ledger.steps() == 0
    assert not Evil.ran


class Evil:
    ran: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return Evil.ran.append, (1,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """Also where the digest is right."""
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"engine": Evil(), "model": {}, "optimizer": {}}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    (tmp_path / "run.pt").write_bytes(b"dpcheck checkpoint 1 sha256 " + digest + b"\n" + content)
    with pytest.raises(DpcheckError, match="code"):
        load_checkpoint(engine(), tmp_path / "run.pt")
    assert not Evil.ran


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        RuntimeError("a worker (pid 7) is killed by signal: Killed"),
        KeyboardInterrupt(),
    ],
)
def test_a_step_that_dies_is_counted_and_changes_nothing(tmp_path: Path, error: Any) -> None:
    class Dying(Closed):
        def before(self, batch: Any) -> None:
            raise error

    trained = engine(clipper=Dying, ledger=tmp_path / "ledger", expected_batch_size=39)
    weights = vector(trained.model)
    with pytest.raises(type(error)):
        trained.step(next(iter(trained)))
    assert torch.equal(vector(trained.model), weights)
    assert trained.ledger.steps() == Ledger(tmp_path / "ledger").steps() == 1
    assert all(p.grad is None for p in trained.model.parameters())


def test_the_clock_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    released = []
    for _ in range(2):
        torch.manual_seed(0)
        trained = engine()
        trained.step(next(iter(trained)))
        released.append(vector(trained.model))
    assert not torch.equal(*released)


def test_global_seeds_play_no_part_and_are_left_alone() -> None:
    import random

    import numpy as np

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    trained = engine()
    for batch, _ in zip(trained, range(3), strict=False):
        trained.step(batch)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    assert (state[2] == np.random.get_state()[1]).all()


def test_a_worker_that_dies_in_a_step_is_counted(tmp_path: Path) -> None:
    """The data set's own process, killed while it reads."""
    from torch.utils.data import TensorDataset

    class Reading(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            raise RuntimeError(f"the reader was killed by signal {os.WTERMSIG(status)}")

    trained = engine(ledger=tmp_path / "ledger", expected_batch_size=39, kind=Reading)
    with pytest.raises(RuntimeError, match="signal 9"):
        trained.step(next(iter(trained)))
    assert Ledger(tmp_path / "ledger").steps() == trained.ledger.steps() == 1


def test_a_worker_of_the_loader_that_is_killed_is_counted(tmp_path: Path) -> None:
    from torch.utils.data import TensorDataset

    class Killing(TensorDataset):
        """Each process but the first is killed when it reads."""

        def __init__(self, *tensors: Any) -> None:
            super().__init__(*tensors)
            self.first = os.getpid()

        def __getitem__(self, index: int) -> Any:
            if os.getpid() != self.first:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    trained = engine(ledger=tmp_path / "ledger", expected_batch_size=39, kind=Killing, num_workers=1)
    weights = vector(trained.model)
    with pytest.raises((DpcheckError, RuntimeError)):
        trained.step(next(iter(trained)))
    assert torch.equal(vector(trained.model), weights)
    assert Ledger(tmp_path / "ledger").steps() == trained.ledger.steps() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_records_that_are_not_finite_are_refused_counted_and_change_nothing(tmp_path: Path, bad: float) -> None:
    """With the engine's own clipper, whose loss it is that is not finite."""
    from dpcheck.engine.clipping import Clipper

    trained = engine(ledger=tmp_path / "ledger", expected_batch_size=40, clipper=Clipper)
    trained._loader.dataset.tensors[0][7] = bad
    weights = vector(trained.model)
    with pytest.raises(DpcheckError, match="record 7"):
        trained.step(next(iter(trained)))
    assert torch.equal(vector(trained.model), weights)
    assert Ledger(tmp_path / "ledger").steps() == trained.ledger.steps() == 1
