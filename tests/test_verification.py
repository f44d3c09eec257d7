"""verify(): right samplers pass in every dtype, every planted fault is caught, and the model is left alone."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import FAULTS
from torch import nn

from dpcheck import DpcheckError, verify
from dpcheck.testing import output_losses


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def classified(size=6):
    torch.manual_seed(0)
    return torch.randn(size, 4), torch.randint(0, 3, (size,))


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.ReLU(inplace=True), nn.Linear(8, 3))


@pytest.mark.parametrize("fault", FAULTS, ids=[f.what for f in FAULTS])
def test_a_wrong_sampler_is_caught(fault, monkeypatch):
    torch.manual_seed(0)
    model, batch = fault.make()
    model = model.double()
    assert verify(model, output_losses, batch).ok
    fault.plant(monkeypatch)
    assert not verify(model, output_losses, batch).ok


def test_a_proof_names_parameters_sites_method_and_errors():
    proof = verify(mlp(), cross_entropy, classified())
    assert proof.ok
    assert (proof.method, proof.reason, proof.notes) == ("graph", "", ())
    assert (proof.cases, proof.dtype) == (6, torch.float64)
    assert {p.name: p.sites for p in proof.parameters} == {
        "0.weight": ("matmul",), "0.bias": ("sum",), "3.weight": ("matmul",), "3.bias": ("sum",)
    }  # fmt: skip
    for p in proof.parameters:
        assert p.ok
        assert p.method == "graph"
        assert p.error_single < 1e-12
        assert p.error_vmap < 1e-12
        assert p.error_own_dtype < 1e-5


def test_the_model_and_the_generators_are_left_alone():
    model, batch = mlp(), classified()
    model.register_buffer("seen", torch.zeros(()))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    identities = [id(p) for p in model.parameters()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    verify(model, cross_entropy, batch)
    assert identities == [id(p) for p in model.parameters()]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_own_dtype_and_memory_format(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3))
    model = model.to(dtype, memory_format=torch.channels_last)
    x = torch.randn(4, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    formats = []

    def loss_fn(m, batch):
        formats.append((batch[0].dtype, batch[0].is_contiguous(memory_format=torch.channels_last)))
        return cross_entropy(m, batch).float()

    proof = verify(model, loss_fn, (x, torch.tensor([0, 1, 2, 0])))
    assert proof.ok
    assert {(torch.float64, True), (dtype, True)} <= set(formats)
    assert all(p.error_own_dtype is not None for p in proof.parameters)


def test_a_fault_of_the_own_dtype_alone_is_caught(monkeypatch):
    from dpcheck.engine.sites.matmul import MatmulSite

    original = MatmulSite.weighted
    wrong = lambda self, f, a, b: original(self, f, a, b) * (1 + 0.1 * (a.dtype is torch.float32))  # noqa: E731
    monkeypatch.setattr(MatmulSite, "weighted", wrong)
    model, batch = nn.Linear(4, 3), classified()
    assert verify(model.double(), cross_entropy, (batch[0].double(), batch[1])).ok
    assert not verify(model.float(), cross_entropy, batch).ok


def test_float32_inside_a_float64_run_is_rounding_and_said():
    model, (x, y) = nn.Linear(4, 3), classified()

    def loss_fn(m, batch):
        return F.cross_entropy(m(batch[0]).float() * 1.7, batch[1], reduction="none")

    proof = verify(model, loss_fn, (x, y))
    assert proof.ok
    assert "torch.float32 by itself" in " ".join(proof.notes)


class Casting(nn.Linear):
    """Cannot run in float64."""

    def forward(self, x):
        return F.linear(x.float(), self.weight, self.bias)


def test_a_model_that_cannot_run_in_float64_is_compared_in_its_own():
    proof = verify(Casting(4, 3), cross_entropy, classified())
    assert proof.ok
    assert proof.dtype is torch.float32
    assert "float64 fails" in proof.notes[0]


class Branching(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return 2 * h if h.abs().max().item() > 100 else h


class Chance(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (0.5 + random.random()) * float(np.random.rand())


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


@pytest.mark.parametrize(
    ("kind", "method", "why"),
    [
        (Branching, "single", "depends on the data"),
        (Chance, "vmap", "random numbers"),
        (Counting, "vmap", "Python state (calls)"),
    ],
)
def test_what_the_graph_cannot_hold_is_compared_as_the_engine_does_it(kind, method, why):
    proof = verify(kind(4, 3), cross_entropy, classified())
    assert proof.ok
    assert proof.method == method
    assert why in proof.reason
    assert all(p.error_vmap is None and p.sites == () for p in proof.parameters)
    assert ("cannot run this model" in " ".join(proof.notes)) == (method == "single")


def test_one_sample_and_a_batch_larger_than_what_is_compared():
    assert verify(mlp(), cross_entropy, classified(1)).cases == 1
    assert verify(mlp(), cross_entropy, classified(30)).cases == 6


def test_a_parameter_that_no_loss_reaches_has_gradient_zero():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(2, 2)})
    proof = verify(model, lambda m, b: cross_entropy(m["used"], b), classified())
    assert proof.ok
    assert {p.name for p in proof.parameters} == {"used.weight", "used.bias", "idle.weight", "idle.bias"}


def test_scalar_parameters():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x):
            return super().forward(x) * self.scale

    assert verify(Scaled(), cross_entropy, classified()).ok


def test_samples_that_mix_have_no_per_sample_gradients():
    with pytest.raises(DpcheckError, match="samples of the batch mix"):
        verify(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), cross_entropy, classified())


def test_a_frozen_model_has_nothing_to_verify():
    with pytest.raises(DpcheckError, match="no trainable parameter"):
        verify(mlp().requires_grad_(False), cross_entropy, classified())


def test_a_backward_that_raises_is_the_users_error():
    def loss_fn(m, batch):
        h = torch.relu(m(batch[0]))
        saved = h.square()
        h.add_(1)
        return saved.sum(1)

    with pytest.raises(DpcheckError, match="gradient of a sample cannot be computed"):
        verify(nn.Linear(4, 3), loss_fn, classified())
