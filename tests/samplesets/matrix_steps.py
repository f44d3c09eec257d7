"""Steps on matrices, one or a stack of them: products, decompositions, distances, triangles."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from steps import STEPS, Weights, add, planar, rare, step
from torch import Tensor

aten = torch.ops.aten


def _spd(q: Tensor) -> Tensor:
    """A positive definite matrix for each matrix of the stack."""
    scaled = q / (1 + q.abs())
    return torch.eye(q.shape[-2], dtype=q.dtype) * 1.5 + scaled @ scaled.transpose(-1, -2) / q.shape[-1]


def _by_pivots(m: Tensor, q: Tensor) -> Tensor:
    factors, pivots = torch.linalg.lu_factor(m)
    p, low, up = torch.lu_unpack(factors, pivots)
    return (p @ low @ up) @ q


def _reflected(m: Tensor, q: Tensor) -> Tensor:
    factors, tau = torch.geqrf(m.detach())
    return torch.linalg.householder_product(factors + 0 * m, tau) @ q


_OF: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "inv": lambda m, q: torch.linalg.inv(m) @ q,
    "cholesky": lambda m, q: torch.linalg.cholesky(m) @ q,
    "cholesky_inverse": lambda m, q: torch.cholesky_inverse(torch.linalg.cholesky(m)) @ q,
    "cholesky_solve": lambda m, q: torch.cholesky_solve(q, torch.linalg.cholesky(m)),
    "qr": lambda m, q: torch.linalg.qr(m)[1] @ q,
    "svd": lambda m, q: torch.linalg.svdvals(m)[..., None] * q,
    "eigh": lambda m, q: torch.linalg.eigvalsh(m)[..., None] * q,
    "eig": lambda m, q: torch.linalg.eigvals(m).abs()[..., None].detach() * q,
    "lu": lambda m, q: torch.linalg.lu(m)[2] @ q,
    "lu_unpack": _by_pivots,
    "det": lambda m, q: torch.linalg.det(m)[..., None, None] * q,
    "slogdet": lambda m, q: torch.linalg.slogdet(m)[1][..., None, None] * q,
    "householder": _reflected,
    "exp": lambda m, q: torch.linalg.matrix_exp(m / 3) @ q / 3,
    "solve": lambda m, q: torch.linalg.solve(m, q),
    "solve_triangular": lambda m, q: torch.linalg.solve_triangular(m.triu(), q, upper=True),
    "pinv": lambda m, q: torch.linalg.pinv(m) @ q,
    "hermitian_pinv": lambda m, q: torch.linalg.pinv(m, hermitian=True) @ q,
    "trace": lambda m, q: (m if m.dim() == 2 else m[0]).trace() * q / 9,
    "diag": lambda m, q: m.diagonal(0, -2, -1)[..., None] * q,
    "power": lambda m, q: torch.linalg.matrix_power(m, 2) @ q,
}


def _matrix(name: str) -> Callable[[Tensor, int, Weights, Tensor], Tensor]:
    def apply(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
        q = z.transpose(a, -2)
        return _OF[name](_spd(q), q).transpose(a, -2)

    return apply


add(_OF, _matrix, prefix="matrix_", seldom=True)


@step
def baddbmm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    q = q if q.dim() == 3 else q[None]
    m = q @ q.transpose(-1, -2)
    out = torch.baddbmm(q, m, q, beta=0.5, alpha=0.1)
    return (out if z.dim() == 3 else out[0]).transpose(a, -2)


@planar
def addmm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n, d = z.shape
    return torch.addmm(z, z, w.square[:d, :d], beta=0.5) if a else torch.addmm(z, w.square[:n, :n], z)


@planar
def gram(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return (z @ z.t() @ z if a == 0 else z @ (z.t() @ z)) / 9


@planar
def distances(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z if a == 0 else z.t()
    out = torch.cdist(q, w.square[: q.shape[0], : q.shape[1]]).square() @ q.detach()
    return out if a == 0 else out.t()


@planar
def vectors(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return z + torch.outer(torch.mv(z, w.vector[: z.shape[1]]), w.vector[: z.shape[1]])


@planar
def rare_products(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    n, d = z.shape
    line = torch.addmv(w.vector[:n], z, w.vector[:d])
    corner = torch.dot(z[a], w.vector[:d]) + torch.vdot(z[a], z[0])
    return torch.addr(z, line, w.mean[:d], alpha=0.1) + 0.01 * corner


@planar
def kronecker(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    return (
        torch.kron(z.contiguous(), w.square[:2, :1])[: z.shape[0]]
        if a
        else torch.block_diag(z, z)[: z.shape[0], : z.shape[1]]
    )


@planar
def shifted_inverse(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """The rows' means on the diagonal of a matrix of weights, which is inverted."""
    q = z if a else z.t()
    n = q.shape[0]
    inverse = torch.linalg.inv(torch.diag(q.mean(1).square() + 9) + w.square[:n, :n])
    return z + (inverse.sum(1)[:, None] if a else inverse.sum(1)[None])


@planar
def row_distances(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.detach() if a else z.detach().t()
    pairs = F.pdist(q)
    return z + pairs.mean() + (aten._euclidean_dist(q, q).mean(1)[:, None] if a else 0)


@rare
def addbmm(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    q = z.transpose(a, -2)
    if q.dim() == 2:
        return z
    return z + torch.addbmm(q[0], q @ q.transpose(-1, -2) / 9, q).mean()


@rare
def crossed(z: Tensor, a: int, w: Weights, y: Tensor) -> Tensor:
    """Three numbers along an axis, crossed with themselves shifted."""
    q = z.narrow(a, 0, 3)
    return torch.cat([torch.linalg.cross(q, q.tanh(), dim=a), z.narrow(a, 3, z.shape[a] - 3)], a)


for _i in (0, 1):
    for _name in ("tril", "triu"):
        STEPS[f"{_name}{_i}"] = lambda z, a, w, y, n=_name, i=_i: getattr(z.transpose(a, -1), n)(i).transpose(a, -1)
