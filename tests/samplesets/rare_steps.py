"""Steps that call rarely used ops, most of them directly: creation, chance, copies in place of views, writes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from steps import Weights, add, line, rare
from torch import Tensor

aten = torch.ops.aten


def _strided_copy(q: Tensor) -> Tensor:
    return torch.as_strided_copy(q, q.shape[::-1], q.stride()[::-1]).permute(*range(q.dim())[::-1])


def _rank(q: Tensor) -> Tensor:
    return torch.searchsorted(q.sort(-1).values, q)


def _unsafe_put(q: Tensor) -> Tensor:
    return aten._unsafe_index_put(q, [torch.tensor([1, 0])], q[:2].tanh())  # type: ignore[no-any-return]


_CREATED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ones_like": lambda z, n: torch.ones_like(z),
    "full": lambda z, n: torch.full(z.shape, 0.5, dtype=z.dtype),
    "full_like": lambda z, n: torch.full_like(z, 0.5),
    "new_full": lambda z, n: z.new_full(z.shape, 0.5),
    "filled": lambda z, n: torch.empty(z.shape, dtype=z.dtype).fill_(0.5),
    "new_empty": lambda z, n: z.new_empty(z.shape).zero_(),
    "empty_strided": lambda z, n: torch.empty_strided(z.shape, z.contiguous().stride(), dtype=z.dtype).fill_(1.5),
    "new_empty_strided": lambda z, n: z.new_empty_strided(z.shape, z.contiguous().stride()).fill_(1.5),
    "empty_permuted": lambda z, n: torch.empty_permuted(z.shape, tuple(range(z.dim())), dtype=z.dtype).fill_(1.5),
    "logspace": lambda z, n: torch.logspace(0, -1, z.shape[-1], dtype=z.dtype),
    "rand": lambda z, n: torch.rand(z.shape[-1], dtype=z.dtype),
    "randn": lambda z, n: torch.randn(z.shape[-1], dtype=z.dtype),
    "randn_like": lambda z, n: torch.randn_like(z),
    "randint": lambda z, n: torch.randint(1, 4, (z.shape[-1],)),
    "randint_like": lambda z, n: torch.randint_like(z, 1, 4),
    "hann": lambda z, n: torch.hann_window(z.shape[-1], dtype=z.dtype),
    "bartlett": lambda z, n: torch.bartlett_window(z.shape[-1], dtype=z.dtype),
    "hamming": lambda z, n: torch.hamming_window(z.shape[-1], dtype=z.dtype),
    "blackman": lambda z, n: torch.blackman_window(z.shape[-1], dtype=z.dtype),
    "exponential": lambda z, n: torch.empty_like(z).exponential_().clamp(0.1, 2),
    "cauchy": lambda z, n: torch.empty_like(z).cauchy_().clamp(-1, 1),
    "log_normal": lambda z, n: torch.empty_like(z).log_normal_().clamp(0.1, 2),
    "geometric": lambda z, n: torch.empty_like(z).geometric_(0.5).clamp(1, 3),
    "random": lambda z, n: torch.empty_like(z).random_(4) + 1,
    "uniform": lambda z, n: torch.empty_like(z).uniform_(0.5, 1.5),
    "normal_into": lambda z, n: torch.empty_like(z).normal_(1, 0.1),
    "filled_with_data": lambda z, n: torch.full_like(z, 1.0).fill_(z.detach().flatten()[0]),
    "triangle": lambda z, n: z.new_ones(z.shape[-1]).index_fill(0, torch.tril_indices(2, 2)[0], 0.5),
    "upper_triangle": lambda z, n: z.new_ones(z.shape[-1]).index_fill(0, torch.triu_indices(2, 2)[1], 0.5),
}
_CHANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "native_dropout": lambda z: torch.native_dropout(z, 0.3, True)[0],
    "alpha_dropout": lambda z: F.alpha_dropout(z, 0.2, training=True),
    "multinomial": lambda z: (
        z * (1 + torch.multinomial(z.detach().flatten(0, -2).softmax(-1), 1).reshape(*z.shape[:-1], 1))
    ),
    "normal": lambda z: torch.normal(z.detach(), 0.1) + z,
    "bernoulli": lambda z: torch.bernoulli(z.detach().sigmoid()) * z,
    "poisson": lambda z: torch.poisson(z.detach().exp().clamp(max=5)) * z / 3,
    "binomial": lambda z: torch.binomial(torch.full_like(z, 3.0), z.detach().sigmoid()) * z / 3,
    "gamma": lambda z: torch._standard_gamma(z.detach().exp().clamp(0.5, 3)).clamp(max=3) * z,
    "dirichlet": lambda z: torch._sample_dirichlet(z.detach().exp().clamp(0.5, 3)) * z,
    "gumbel": lambda z: F.gumbel_softmax(z, dim=-1, hard=True) * z,
    "rrelu_functional": lambda z: aten.rrelu_with_noise_functional(z, torch.ones_like(z), 0.1, 0.3, True)[0],
}
_COPIED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeat": lambda z, a: z.repeat(*[2 if k == a else 1 for k in range(z.dim())]).narrow(a, 1, z.shape[a]),
    "rot90": lambda z, a: z.rot90(2, (a, (a + 1) % z.dim())),
    "split_with_sizes": lambda z, a: torch.cat(z.split([1, z.shape[a] - 1], a)[::-1], a),
    "unsafe_split": lambda z, a: torch.cat(torch.unsafe_split(z, 2, a)[::-1], a),
    "split_copy": lambda z, a: torch.cat(torch.split_copy(z, 2, a)[::-1], a),
    "unbind_copy": lambda z, a: torch.stack(torch.unbind_copy(z, a)[::-1], a),
    "view_copy": lambda z, a: torch.view_copy(z, (-1,)).flip(0).reshape(z.shape),
    "expand_copy": lambda z, a: torch.expand_copy(z.narrow(a, 1, 1), z.shape),
    "permute_copy": lambda z, a: torch.permute_copy(z, tuple(range(z.dim()))[::-1]).reshape(z.shape),
    "transpose_copy": lambda z, a: torch.transpose_copy(z, 0, a).reshape(z.shape),
    "t_copy": lambda z, a: z + torch.t_copy(z.select(a, 0).reshape(z.select(a, 0).shape[0], -1)).mean(),
    "slice_copy": lambda z, a: torch.cat([torch.slice_copy(z, a, 1), torch.slice_copy(z, a, 0, 1)], a),
    "select_copy": lambda z, a: z - torch.select_copy(z, a, 1).unsqueeze(a),
    "squeeze_copy": lambda z, a: z + torch.squeeze_copy(torch.unsqueeze_copy(z, a), a),
    "as_strided_copy": lambda z, a: _strided_copy(z.contiguous() * 1),
    "diagonal_copy": lambda z, a: z - torch.diagonal_copy(z, 0, 0, -1).mean(-1, keepdim=True).mean(),
    "diagonal_scatter": lambda z, a: torch.diagonal_scatter(z, z.diagonal(0, 0, 1).tanh() + 1, 0, 0, 1),
    "select_scatter": lambda z, a: torch.select_scatter(z, z.select(a, 1).tanh() * 2, a, 0),
    "slice_scatter": lambda z, a: torch.slice_scatter(z, z.narrow(a, 0, 1) * 2, a, 1, 2),
    "as_strided_scatter": lambda z, a: torch.as_strided_scatter(z.contiguous(), z.reshape(-1)[3:5] * 2, (2,), (1,)),
    "reshape_alias": lambda z, a: aten._reshape_alias(z.contiguous(), z.shape, z.contiguous().stride()).tanh(),
    "conjugated": lambda z, a: torch.complex(z, z.roll(1, a)).conj().imag + z,
    "resolved": lambda z, a: torch.view_as_real(torch.complex(z, z.flip(a)).conj().resolve_conj())[..., 1],
    "repeated": lambda z, a: z.repeat_interleave(torch.arange(z.shape[a]) % 2 + 1, a, output_size=z.shape[a] * 3 // 2)
    .narrow(a, 1, z.shape[a]),
    "lifted": lambda z, a: z * line(torch.tensor([1.0, 0.5, 2.0] * 16, dtype=z.dtype), z.shape[a], a, z.dim()),
    "unsafe_index": lambda z, a: aten._unsafe_index(z.movedim(a, 0), [torch.arange(z.shape[a]) // 2]).movedim(0, a),
    "unsafe_put": lambda z, a: _unsafe_put(z.movedim(a, 0)).movedim(0, a),
    "block_view": lambda z, a: z.unflatten(a, (1, -1)).swapaxes(a, a + 1).squeeze(a + 1).view_as(z),
    "bits": lambda z, a: z + z.detach().contiguous().view(torch.int64).view(torch.float64),
    "histogram": lambda z, a: z * (1 + torch.histc(z.detach(), 4, -2, 2)[1] / 9),
    "searched": lambda z, a: z + torch.bucketize(z.detach().contiguous(), torch.linspace(-1, 1, 5, dtype=z.dtype)),
    "looked_up_sorted": lambda z, a: z + _rank(z.detach().contiguous()) / 9,
    "permuted": lambda z, a: z.index_select(a, torch.randperm(z.shape[a])),
}  # fmt: skip

add(_CREATED, lambda name: lambda z, a, w, y: z * _CREATED[name](z, a), prefix="created_", seldom=True)
add(
    _CHANCE,
    lambda name: lambda z, a, w, y: _CHANCE[name](z.transpose(a, -1)).transpose(a, -1),
    prefix="by_",
    seldom=True,
)
add(_COPIED, lambda name: lambda z, a, w, y: _COPIED[name](z, a), prefix="copied_", seldom=True)


@rare
def running_norm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Batch norm with running statistics of its own, which are dropped."""
    q = z.transpose(a, 1)
    n = q.shape[1]
    return F.batch_norm(q, w.mean[:n].clone(), w.variance[:n].clone(), training=True).transpose(a, 1)


@rare
def other_norms(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, 1)
    n = q.shape[1]
    mean, variance, scale = w.mean[:n], w.variance[:n], w.vector[:n].detach()
    frozen = aten._native_batch_norm_legit_no_training(q, None, None, mean, variance, 0.1, 1e-5)[0]
    updated = aten._batch_norm_with_update_functional(q, scale, mean, mean, variance, 0.1, 1e-5)[0]
    fixed = aten._batch_norm_no_update(q, scale, mean, mean, variance, 0.1, 1e-5)[0]
    return z + (frozen + updated + fixed).transpose(a, 1)


@rare
def reduced_scatter(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.scatter_reduce(a, z.detach().argsort(a), z, "amax") + z.scatter_reduce(
        a, line(torch.arange(z.shape[a]) // 2, z.shape[a], a, z.dim()).expand(z.shape), z, "mean", include_self=False
    )


@rare
def index_copied(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.index_copy(a, torch.tensor([1, 0]), z.narrow(a, 0, 2).tanh())


@rare
def masked_scattered(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.masked_scatter(z.detach() > 0, z.flip(a))


@rare
def put_flat(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z.put(torch.tensor([0, 7]), z.reshape(-1)[3:5]) + z.take(torch.tensor([2]))


@rare
def renormed_table(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    words = (z.detach() * 2).long().clamp(0, 7)
    return z + F.embedding(words, w.table.weight.detach().clone(), max_norm=1.0)[..., 0]


@rare
def sparse_table(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z + w.sparse((z.detach() * 2).long().clamp(0, 7))[..., 0]


@rare
def renormed_and_read(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """A table whose rows the data rescaled, read by everybody."""
    words, table = (z.detach() * 2).long().clamp(0, 7), w.table.weight.detach().clone()
    return z + F.embedding(words, table, max_norm=1.0)[..., 0] * table.mean()


@rare
def folded_back(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Windows along the axis that overlap."""
    return z + z.unfold(a, 3, 2).tanh().mean(-1).sum(a, keepdim=True)
