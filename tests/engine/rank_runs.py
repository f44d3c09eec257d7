"""What two ranks do, each in a process of its own; see test_ranks.py."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.trainer import PrivacyEngine
from torch import nn
from torch.utils.data import TensorDataset
from white_box import Linear, Loop, loss_fn, make, records, released

from dpcheck.errors import DpcheckError

X = records(23)
SAME = {"expected_batch_size": 9, "max_grad_norm": 0.5, "seed": 7, "steps": 6}


class Forbidden:
    def stream(self, purpose, step):
        raise AssertionError(f"a rank other than 0 asked for {purpose}")


class Reading(TensorDataset):
    """Remembers what was read."""

    def __init__(self, x):
        super().__init__(x)
        self.read = []

    def __getitem__(self, index):
        self.read.append(int(index))
        return super().__getitem__(index)


def same_as_one(**options):
    """What must be the same as in one process."""
    engine = make(X, **(SAME | options))
    return released(engine, 6), engine.max_grad_norm, engine.epsilon()


SAMES = {
    "silent": {"noise_multiplier": 0.0},
    "noisy": {"noise_multiplier": 1.0},
    "physical": {"noise_multiplier": 0.0, "physical_batch_size": 2},
    "adaptive": {"noise_multiplier": 1.0, "clipping": "adaptive", "_clipper": Clipper},
    "layers": {"noise_multiplier": 0.0, "clipping": "per-layer", "_clipper": Clipper},
}


def draws(rank):
    """Draws, and what each rank read of them."""
    data, model = Reading(X), Linear()
    engine = PrivacyEngine(
        model, loss_fn, torch.optim.SGD(model.parameters(), lr=1.0), data, expected_batch_size=6, max_grad_norm=1.0,
        delta=1e-3, noise_multiplier=1.0, steps=60, check=False, _clipper=Loop, physical_batch_size=1,
    )  # fmt: skip
    if rank:
        engine._streams = Forbidden()
    drawn, read, metrics = [], [], []
    for batch in engine:
        data.read.clear()
        metrics.append(engine.step(batch))
        drawn.append(batch.indices.tolist())
        read.append(sorted(data.read))
    return drawn, read, [(m.drawn, m.loss, m.norms) for m in metrics]


def only_noise(rank):
    model = Linear(2000, 3)
    return released(make(torch.zeros(8, 2003), model=model, expected_batch_size=4, steps=5), 5)


def unequal_start(rank):
    model = Linear()
    with torch.no_grad():
        model.a += rank
    engine = make(X, model=model, noise_multiplier=0.0, seed=1)
    engine.fit(progress=False)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def failure_on_one(rank):
    x = torch.randn(8, 5)
    x[7] = math.nan
    engine = make(x, steps=3, _clipper=Clipper)
    try:
        engine.step(next(iter(engine)))
    except DpcheckError as error:
        return str(error), engine.steps_taken
    return "no error", 0


def refusal(make_it):
    try:
        make_it()
    except DpcheckError as error:
        return str(error)
    return "no error"


def ledgers(rank, folder):
    """A run that resumes, with a file that only rank 0 writes."""
    path = folder / f"ledger{rank}.jsonl"
    first = make(X, steps=6, ledger=path)
    released(first, 3)
    state = first.state_dict()
    second = make(X, steps=6, ledger=path)
    counted = second.ledger.steps(), second.steps_taken
    second.load_state_dict(state)
    second.fit(progress=False)
    return counted, second.steps_taken, second.ledger.state_dict(), path.exists() and len(path.read_text().splitlines())


def main(rank, folder):
    """Every run on this rank; results in a file."""
    torch.set_num_threads(1)
    folder = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: same_as_one(**options) for name, options in SAMES.items()}
    found["secure"] = released(make(X, expected_batch_size=23, noise_multiplier=0.0, secure=True), 1)
    found["draws"], found["noise"] = draws(rank), only_noise(rank)
    found["start"], found["failure"] = unequal_start(rank), failure_on_one(rank)
    found["settings"] = refusal(lambda: make(X, expected_batch_size=4 + rank))
    found["model"] = refusal(lambda: make(X, model=Linear(3 + rank, 2 - rank)))
    ddp = nn.parallel.DistributedDataParallel(Linear())
    found["wrapped"] = refusal(lambda: make(X, model=ddp))
    found["ledgers"] = ledgers(rank, folder)
    torch.save(found, folder / f"found{rank}.pt")
    dist.destroy_process_group()
