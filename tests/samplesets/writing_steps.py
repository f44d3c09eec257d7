"""Steps that index with constants or data, write in place, or have a backward of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from steps import Weights, line, planar, step
from torch import Tensor


@step
def table(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A row of a table for each place along the axis: a position embedding."""
    n = z.shape[a]
    rows = w.table(torch.arange(n) % 8)[:, 0]
    return z + line(rows, n, a, z.dim())


@step
def looked_up(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A table looked up by the data."""
    return z + w.table((z.detach() * 2).long().clamp(0, 7))[..., 0]


@step
def counted(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Gradient divided by how often an index occurs."""
    return z * w.by_count((z.detach() * 2).long().clamp(0, 3))[..., 1]


@step
def bag(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    hot = F.one_hot((z.detach() * 2).long().clamp(0, 7), 8).to(z.dtype)
    return z + (hot @ w.table.weight[:, :2]).sum(-1)


@step
def picked(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.index_select(a, w.picks[: z.shape[a]] % z.shape[a])


@step
def advanced(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, 0)
    return q[torch.arange(q.shape[0]) // 2].movedim(0, a)


@step
def paired(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """``z[arange, idx]``: the common way to take one element of every row."""
    q = z.movedim(a, -1)
    best = q[0].argmax(-1) if q.dim() == 3 else q.argmax(-1)
    rows = torch.arange(q.shape[-2])
    taken = q[:, rows, best] if q.dim() == 3 else q[rows, best]
    return (q + taken.unsqueeze(-1)).movedim(-1, a)


@step
def gathered_known(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n = z.shape[a]
    return z.gather(a, line(torch.arange(n).flip(0), n, a, z.dim()).expand(z.shape))


@step
def gathered_by_sign(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Every element says which of the first two along the axis it takes."""
    return z.gather(a, (z.detach() > 0).long())


def _batch_first(z: Tensor, a: int, y: Tensor) -> Tensor:
    return z if z.shape[0] == len(y) else z.movedim(a, 0)


@step
def shifted_mask(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Rows are overwritten by the label of their neighbour."""
    q = _batch_first(z, a, y).clone()
    if len(q) == len(y):
        q[y.roll(1) > 2] = 0.5
    return q if z.shape[0] == len(y) else q.movedim(0, a)


@step
def by_label(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Selects with the labels, which fits where the batch is in front."""
    q = _batch_first(z, a, y)
    if q.shape[0] != y.shape[0]:
        return z
    out = q * (y.view(-1, *[1] * (q.dim() - 1)) > 1) + q[torch.arange(len(y)), y % q.shape[1]].unsqueeze(1)
    return out if z.shape[0] == y.shape[0] else out.movedim(0, a)


@step
def unknown_rows(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.index_select(a, (z.detach().abs().flatten()[: z.shape[a]] * 3).long() % z.shape[a])


@step
def scattered(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return torch.zeros_like(z).scatter_add(a, z.detach().argsort(a), z)


@step
def scatter_set(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.scatter(a, z.detach().argmax(a, keepdim=True), z.mean(a, keepdim=True))


@step
def scatter_known(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n = z.shape[a]
    index = line(torch.arange(n).flip(0), n, a, z.dim()).expand(z.shape)
    return z.scatter(a, index, z.tanh())


@step
def index_added(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.index_add(a, w.picks[: z.shape[a]] % z.shape[a], z, alpha=0.5)


@step
def index_put(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, 0).clone()
    q[torch.tensor([1, 0])] = q[:2].tanh()
    return q.movedim(0, a)


@step
def index_put_add(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, 0)
    return torch.index_put(q, (torch.tensor([0, 0, 1]),), q[:3], accumulate=True).movedim(0, a)


@step
def mask_put(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.clone()
    q[q > 0.5] = 0.25
    return q


@step
def row_mask_put(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.movedim(a, 0).clone()
    q[q.flatten(1).sum(1) > 0] = 0.5
    return q.movedim(0, a)


@step
def wrote_slice(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.clone()
    q.narrow(a, 0, 2).mul_(0.5)
    return q


@step
def wrote_over(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.clone()
    q.narrow(a, 0, 1).copy_(z.narrow(a, 1, 1).tanh())
    return q


@step
def wrote_view(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.clone()
    q.transpose(0, a)[0].add_(q.transpose(0, a)[-1].detach())
    return q


@step
def wrote_mean(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = torch.empty_like(z)
    q.copy_(z)
    return q.sub_(z.mean(a, keepdim=True)).relu_() + z


@step
def wrote_flat(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.contiguous().clone()
    q.view(-1)[1:].mul_(0.9)
    q.select(a, 1).fill_(0.1)
    return q


@step
def filled(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Filled place by place, as recurrent code does."""
    out = torch.zeros_like(z)
    state = torch.zeros_like(z.select(a, 0))
    for i in range(z.shape[a]):
        state = torch.tanh(z.select(a, i) + 0.5 * state)
        out.select(a, i).copy_(state)
    return out


@planar
def diagonal(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.clone()
    q.fill_diagonal_(0.5)
    return q + torch.diag_embed(z[:, 0])[:, :1]


@planar
def strided(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Strides of a tensor that is not contiguous."""
    q = z.t()
    return q.as_strided(tuple(q.shape), q.stride()).t() if a else z + z.as_strided(z.shape, z.stride())


@planar
def reshaped(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.t().reshape(z.shape) if a else z.reshape(-1).flip(0).reshape(z.shape)


@step
def grid(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A range whose ends are taken from the data."""
    q = z.detach().movedim(a, 0).flatten(1)
    return z + line(torch.linspace(q[0].mean(), q[1].mean(), z.shape[a], dtype=z.dtype), z.shape[a], a, z.dim())
