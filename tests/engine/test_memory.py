"""The estimate of a plan's memory against what torch allocates, and sums that do not change with the parts."""

import copy

import pytest
import torch
from dpcheck.engine import clipping, fallback
from dpcheck.engine.available import _free, available, budget_of
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.memory import gradient_bytes, peak_bytes, planning_bytes, room, samples_within
from dpcheck.engine.provable import provable
from dpcheck.engine.trainer import PrivacyEngine
from test_clipping import close, definition, network
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from dpcheck.errors import DpcheckError
from dpcheck.testing import output_losses

CPU = torch.device("cpu")


def measured(run):
    """Most bytes of torch's allocator in use at once, above those at the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = run()
    assert kept is not None
    events, stack = [], list(found.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(events):
        now += size
        most = max(most, now)
    return most


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner = nn.Embedding(3000, 32), nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 3000)

    def forward(self, ids):
        return self.head(self.inner(self.table(ids)))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), lambda b: torch.randn(b, 64)),
    "positions": (
        lambda: nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8)),
        lambda b: torch.rand(b, 9, 64),
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten()),
        lambda b: torch.randn(b, 3, 24, 24),
    ),
    "words": (Words, lambda b: torch.randint(0, 3000, (b, 24))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 48])
def test_the_estimate_is_what_torch_allocates(name, size):
    make, batch = MODELS[name]
    torch.manual_seed(0)
    model, x = make(), batch(size)
    clipper = Clipper(model, output_losses, max_grad_norm=1.0)
    plan = clipper.plan((x,))
    clipper((x,))
    real = measured(lambda: clipper((x,)))
    assert 0.8 * real <= peak_bytes(plan) <= 1.4 * real


@pytest.mark.parametrize("name", MODELS)
def test_parts_within_the_budget(name):
    make, batch = MODELS[name]
    torch.manual_seed(0)
    model, x = make().double(), batch(40)
    x = x.double() if x.is_floating_point() else x
    whole = Clipper(model, output_losses, max_grad_norm=0.3)
    peak = peak_bytes(whole.plan((x,)))
    fixed = sum(p.nbytes for p in model.parameters())
    budget = (fixed + (peak - fixed) // 3) // 2 * 2
    clipper = Clipper(model, output_losses, max_grad_norm=0.3, memory_budget=budget)
    clipped, expected = clipper((x,)), whole((x,))
    close(clipped, (expected.norms, expected.grads))
    used = clipper._plans.latest()
    assert used.sites[0].batch < 40
    assert peak_bytes(used) <= 1.05 * budget or used.sites[0].batch == 2


def test_parts_are_equal_and_at_least_two():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(10, 50, 8)
    plan = Clipper(model, output_losses, max_grad_norm=1.0).plan((x,))
    peak = peak_bytes(plan)
    assert samples_within(plan, 10, peak) == 10
    assert samples_within(plan, 10, peak - 1) == 5
    assert samples_within(plan, 10, 1) == 2
    found = [samples_within(plan, 10, peak * k // 20) for k in range(1, 21)]
    assert found == sorted(found)
    planning = planning_bytes(plan)
    assert room(plan, 10, gradient_bytes(plan) + 3 * max(peak, planning)) >= 30
    assert room(plan, 10, planning) <= 10
    assert room(plan, 10, gradient_bytes(plan) - 1) == 0


def test_no_plan_is_made_for_more_samples_than_there_is_room_for(monkeypatch):
    """Planning for many takes more memory than planning for a few."""
    planned, model, x = [], nn.Linear(6, 4), torch.randn(60, 9, 6)

    def noting(model, loss_fn, batch):
        planned.append(tuple(batch[0].shape[:2]))
        return provable(model, loss_fn, batch)

    monkeypatch.setattr(clipping, "provable", noting)
    few = Clipper(model, output_losses, max_grad_norm=1.0).plan((x[:8],))
    clipper = Clipper(model, output_losses, max_grad_norm=1.0, memory_budget=room_for(20, few))
    planned.clear()
    for length in (9, 5, 9, 7):
        clipper((x[:, :length],))
    assert planned == [(8, 9), (20, 9), (20, 5), (20, 7)]


def room_for(samples, few):
    return next(budget for budget in range(0, 10**7, 500) if room(few, 8, budget) >= samples)


@pytest.mark.parametrize("reason", ["DefaultCPUAllocator: can't allocate memory", "std::bad_alloc"])
def test_planning_that_runs_out_of_memory_is_repeated_with_fewer(reason, monkeypatch, caplog):
    def hungry(model, loss_fn, batch):
        if len(batch[0]) > 4:
            raise RuntimeError(reason)
        return provable(model, loss_fn, batch)

    monkeypatch.setattr(clipping, "provable", hungry)
    model, x = network(), torch.randn(12, 2, 4, dtype=torch.float64)
    clipper = Clipper(model, output_losses, max_grad_norm=0.5)
    close(clipper((x,)), definition(model, output_losses, (x,), 0.5, torch.ones(12)))
    assert clipper.method == "graph"
    assert "out of memory with 12 samples" in caplog.text


@pytest.mark.parametrize("budget", [None, 1])
def test_a_last_part_is_filled_up_and_weighs_nothing(budget):
    model, x = network(), torch.randn(7, 2, 4, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    clipper = Clipper(model, output_losses, max_grad_norm=0.5, memory_budget=budget)
    close(clipper((x,), weights), definition(model, output_losses, (x,), 0.5, weights))
    assert {planned.plan.sites[0].batch for planned in clipper._plans._kept.values()} == (
        {7} if budget is None else {2, 7}
    )


def test_the_engine_computes_in_parts_what_the_budget_does_not_hold():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)), torch.randn(64, 20)
    budget = peak_bytes(Clipper(model, output_losses, max_grad_norm=0.1).plan((x,))) // 2
    found = []
    for given in ({}, {"memory_budget": budget}, {"physical_batch_size": 64, "memory_budget": budget}):
        own = copy.deepcopy(model)
        engine = PrivacyEngine(
            own, output_losses, torch.optim.SGD(own.parameters(), lr=1.0), TensorDataset(x), expected_batch_size=64,
            max_grad_norm=0.1, delta=1e-3, noise_multiplier=0, steps=1, check=False, **given,
        )  # fmt: skip
        assert engine._clipper.memory_budget is not None
        engine.fit(progress=False)
        found.append((nn.utils.parameters_to_vector(own.parameters()), engine._clipper._plans.latest().sites[0].batch))
    assert [size for _, size in found] == [64, found[1][1], found[1][1]]
    assert 2 <= found[1][1] < 64
    for values, _ in found[1:]:
        torch.testing.assert_close(values, found[0][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [0, -5, 1.5, True, "2G"])
def test_a_budget_that_is_none_is_refused(given):
    with pytest.raises(DpcheckError, match=r"memory_budget=.* is not a positive whole number of bytes"):
        budget_of(given, None, CPU)


def test_the_default_is_half_of_what_is_free():
    free = available(CPU)
    assert free > 2**20
    assert budget_of(None, None, CPU) == pytest.approx(free / 2, rel=0.5)
    assert budget_of(None, 32, CPU) is None
    assert budget_of(12345, 32, CPU) == 12345


def test_limits_of_the_machine_and_of_control_groups(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert list(_free(tmp_path)) == []
    write("proc/meminfo", "MemTotal:  100 kB\nMemAvailable:   70 kB\nHugePages_Total: 0\n")
    assert list(_free(tmp_path)) == [70 * 1024]
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "1000\n")
    assert list(_free(tmp_path)) == [70 * 1024]
    write("sys/fs/cgroup/memory.max", "5000\n")
    write("sys/fs/cgroup/memory.stat", "anon 10\ninactive_file 300\n")
    assert list(_free(tmp_path)) == [70 * 1024, 4300]
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "900\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n")
    assert list(_free(tmp_path)) == [70 * 1024, 4300, 0]


class Hungry:
    """Runs out of memory with more samples than it has room for."""

    def __init__(self, real, room):
        self.real, self.room, self.tried = real, room, []

    def __call__(self, model, loss_fn, batch, *more):
        size = len(batch[0]) if not more else 1
        self.tried.append(size)
        if size > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return self.real(model, loss_fn, batch, *more)


@pytest.mark.parametrize("room", [1, 3])
@pytest.mark.parametrize("wanted", ["auto", "vmap"])
def test_vmap_is_repeated_with_fewer_samples_at_once(room, wanted, monkeypatch, caplog):
    hungry = Hungry(fallback.vmap_gradients, room)
    monkeypatch.setattr(fallback, "vmap_gradients", hungry)
    model, x = network(), torch.randn(7, 2, 4, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    clipper = Clipper(model, output_losses, max_grad_norm=0.5, method=wanted)
    clipper.method = "vmap"
    for _ in range(2):
        close(clipper((x,), weights), definition(model, output_losses, (x,), 0.5, weights))
    assert clipper.method == "vmap"
    assert "out of memory with 7 samples" in caplog.text
    assert hungry.tried.count(7) == 1


def test_memory_for_no_sample_at_all(monkeypatch):
    monkeypatch.setattr(fallback, "vmap_gradients", Hungry(None, 0))
    monkeypatch.setattr(fallback, "single_gradient", Hungry(None, 0))
    model, x = network(), torch.randn(3, 2, 4, dtype=torch.float64)
    for method in ("vmap", "single"):
        clipper = Clipper(model, output_losses, max_grad_norm=0.5)
        clipper.method = method
        with pytest.raises(DpcheckError, match="memory does not suffice for the gradients of 1 sample;"):
            clipper((x,))


def test_gradients_of_vmap_are_held_to_the_budget(monkeypatch):
    hungry = Hungry(fallback.vmap_gradients, 99)
    monkeypatch.setattr(fallback, "vmap_gradients", hungry)
    model, x = network(), torch.randn(7, 2, 4, dtype=torch.float64)
    each = 2 * sum(p.nbytes for p in model.parameters())
    clipper = Clipper(model, output_losses, max_grad_norm=0.5, method="vmap", memory_budget=3 * each)
    close(clipper((x,)), definition(model, output_losses, (x,), 0.5, torch.ones(7)))
    assert hungry.tried == [3, 3, 3]
