"""An engine whose released values can be read from the parameters, and a plain clipper to compare with."""

import torch
from dpcheck.engine.clipped import Clipped
from dpcheck.engine.trainer import PrivacyEngine
from torch import nn
from torch.utils.data import TensorDataset


class Linear(nn.Module):
    """A loss that is linear in two parameters, so that a record is its own gradient."""

    def __init__(self, a=3, b=2):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(a)), nn.Parameter(torch.zeros(b))

    def forward(self, x):
        return x[:, : len(self.a)] @ self.a + x[:, len(self.a) :] @ self.b


def loss_fn(model, batch):
    return -model(batch[0])


class Loop:
    """A clipper that computes each sample alone with plain autograd."""

    method, reason = "loop", ""

    def __init__(self, model, loss_fn, *, max_grad_norm, method, clipping="flat", **others):
        self.model, self.loss_fn, self.max_grad_norm = model, loss_fn, max_grad_norm
        self.sizes, self.asked = [], method

    def __call__(self, batch, weights=None):
        self.sizes.append(len(weights))
        names = [n for n, p in self.model.named_parameters() if p.requires_grad]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        total, norms, losses = {n: torch.zeros_like(p) for n, p in zip(names, parameters, strict=True)}, [], []
        for i, weight in enumerate(weights):
            loss = self.loss_fn(self.model, [t[i : i + 1] for t in batch])[0]
            grads = torch.autograd.grad(loss, parameters)
            norm = torch.cat([g.flatten() for g in grads]).norm()
            for n, g in zip(names, grads, strict=True):
                total[n] += weight * min(1.0, self.max_grad_norm / max(float(norm), 1e-30)) * g
            norms.append(norm)
            losses.append(loss.detach())
        return Clipped(total, torch.stack(norms), torch.stack(losses))


def make(records, *, model=None, lr=1.0, optimizer=None, **kwargs):
    """An engine whose SGD step of rate 1 adds what is released to the parameters of :class:`Linear`."""
    records = torch.as_tensor(records, dtype=torch.float32)
    model = model or Linear(3, records.shape[1] - 3)
    given = {"noise_multiplier": 1.0} if "target_epsilon" not in kwargs else {}
    given |= {"steps": 4} if "epochs" not in kwargs else {}
    given |= {
        "expected_batch_size": len(records),
        "max_grad_norm": 1.0,
        "delta": 1e-3,
        "check": False,
        "_clipper": Loop,
    }
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    return PrivacyEngine(model, loss_fn, optimizer, TensorDataset(records), **(given | kwargs))


def released(engine, steps=1):
    """The changes of all parameters in the next steps, [steps, parameters]."""
    rows = []
    for batch in engine:
        before = nn.utils.parameters_to_vector(engine.model.parameters()).detach().clone()
        engine.step(batch)
        rows.append(nn.utils.parameters_to_vector(engine.model.parameters()).detach() - before)
        if len(rows) == steps:
            break
    return torch.stack(rows)


def records(n=13, width=5, seed=0):
    scale = torch.logspace(-3, 4, n).unsqueeze(1)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * scale
