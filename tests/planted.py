"""Samplers that are wrong on purpose, each with a model that it is wrong for. ``verify`` has to catch every one."""

from dataclasses import dataclass, replace

import torch
from dpcheck.engine import contributions, fallback, kinds, plan
from dpcheck.engine.sites import bags, convolution, embedding, joint, layout, matmul, norms, scatter, sums
from torch import nn


class Table(nn.Module):
    """``function(table, ids)`` of a table of 7 rows."""

    def __init__(self, function, padding=None):
        super().__init__()
        self.table, self.function = nn.Embedding(7, 3, padding_idx=padding), function

    def forward(self, i):
        return self.function(self.table, i)


class Frames(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], x.shape[0])).sum(0)


def tokens():
    return torch.tensor([[1, 1, 2], [2, 2, 2], [6, 0, 6], [3, 4, 5]])


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def lookup(table, i):
    return table(i)


def tied(table, i):
    return torch.tanh(table(i)) @ table.weight.t()


def conv(**options):
    return nn.Conv2d(2, 4, 2, **options), rows(4, 2, 5, 5)


def linear():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), rows(4, 3, 3)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale.expand(len(x), 3).mean(1, keepdim=True)


@dataclass(frozen=True)
class Fault:
    """``change(original)`` takes the place of ``owner.name``; ``make()`` gives a model and a batch."""

    what: str
    owner: object
    name: str
    change: object
    make: object

    def plant(self, monkeypatch):
        monkeypatch.setattr(self.owner, self.name, self.change(getattr(self.owner, self.name)))


def _with(**options):
    """The method on a copy of the site with other options."""
    return lambda original: lambda self, *args: original(replace(self, **options), *args)


def _times(factor):
    return lambda original: lambda *args, **kwargs: original(*args, **kwargs) * factor


def _overwriting(original):
    def weighted(self, factors, *values):
        grad, row, owner = self.flat(*values)
        total = grad.new_zeros(self.shape)
        total[row] = grad * factors[owner].unsqueeze(1)
        return total

    return weighted


def _lookups_apart(original):
    def square_norms(self, grad, row, owner):
        return grad.new_zeros(self.batch).index_add_(0, owner, grad.square().sum(1))

    return square_norms


def _twice_weighted(original):
    def weighted(self, factors, left, right):
        return original(self, factors, left * self.left.spread(factors, left.dim()), right)

    return weighted


def _rolled(original):
    return lambda self, left, right: original(self, left.roll(1, -1), right)


def _unweighted(original):
    return lambda self, factors, *values: original(self, torch.ones_like(factors), *values)


def _no_scatter_add(original):
    def call(self, values):
        template = replace(self.template, arguments=(*self.template.arguments[:3], False))
        return original(replace(self, template=template), values)

    return call


def _last_term_lost(original):
    return lambda self, values: original(self, values)[:-1]


def _always_isometric(original):
    return lambda self: [replace(c, isometric=len(c.sites) == 1) for c in original(self)]


def _raw_activation(original):
    def per_sample(self, *values):
        fixed = [values[0], *([values[1], values[2] * 0, values[3] * 0 + 1] if self.scale else [])]
        return original(self, *fixed)

    return per_sample


def _groups_swapped(original):
    return lambda self, *values: original(self, values[0], *(v.flip(-1) if v.dim() == 2 else v for v in values[1:]))


def _frames_to_neighbours(original):
    return lambda self, t: original(replace(self, outer=self.inner, inner=self.outer), t)


def _first_branch_detached(original):
    def each(self, *values):
        return original(self, *(v * 0 if self.count > 1 and k == 0 else v for k, v in enumerate(values)))

    return each


def _unclamped(original):
    return lambda norms, bound, weights: weights * bound / norms


def _largest_only(original):
    return lambda squares, weights: torch.stack(squares[0]).amax(0, keepdim=True).t().sqrt()


def _mean_over_batch(original):
    def gradients(model, loss_fn, batch):
        losses, each = original(model, loss_fn, batch)
        return losses, {name: g.mean(0, keepdim=True).expand_as(g) for name, g in each.items()}

    return gradients


def _conv_groups_crossed(original):
    def contract(self, grad, value, copies=1):
        return original(self, grad, value.unflatten(1, (copies * self.groups, -1)).flip(1).flatten(1, 2), copies)

    return contract


def _norm_of_mean(original):
    return lambda left, right: original(left, right) / left.shape[-1] ** 2


def _python_state():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    return Counting(3, 2), rows(4, 3)


def _forgotten_weights(original):
    return lambda self, *values: original(self, *values[:6])


def _sizes_with_padding(original):
    def entries(self, *values):
        found, rows, _ = original(self, *values)
        return found, rows, (rows != self.padding) / torch.bincount(found)[found]

    return entries


def _repeats_in_a_bag_apart(original):
    def square_norms(self, *values):
        bag, _, factors = self._entries(*values)
        squares = values[0].square().sum(1)[bag] * factors.square()
        return squares.new_zeros(self.batch).index_add_(0, self._owners(bag), squares)

    return square_norms


def _first_is_largest(original):
    return lambda self, grad, largest, bag: original(self, grad, largest[:, :1].expand_as(grad), bag)


class WeightedBag(nn.EmbeddingBag):
    def forward(self, i):
        return super().forward(i, per_sample_weights=torch.cos(i.to(self.weight.dtype)))


def bag(mode, **options):
    return lambda: (nn.EmbeddingBag(7, 3, mode=mode, **options), tokens())


FAULTS = [
    Fault("weights of a bag forgotten", bags.BagSite, "_entries", _forgotten_weights,
          lambda: (WeightedBag(7, 3, mode="sum"), tokens())),
    Fault("padding counted in a bag's mean", bags.BagSite, "_entries", _sizes_with_padding, bag("mean", padding_idx=2)),
    Fault("a bag's sum for its mean", bags.BagSite, "_entries", _with(mode=0), bag("mean")),
    Fault("repeated entries of a bag as separate rows", bags.BagSite, "square_norms", _repeats_in_a_bag_apart,
          bag("sum")),
    Fault("all columns of the largest row", bags.BagSite, "_largest", _first_is_largest, bag("max")),
    Fault("bag's sum unclipped", bags.BagSite, "weighted", _unweighted, bag("mean")),
    Fault("bias forgotten in the sum", convolution.ConvolutionBiasSite, "weighted", _times(0), conv),
    Fault("bias forgotten in the norm", convolution.ConvolutionBiasSite, "per_sample", _times(0), conv),
    Fault("stride ignored", convolution.Geometry, "windows", _with(stride=(1, 1)), lambda: conv(stride=2)),
    Fault("dilation ignored", convolution.Geometry, "windows", _with(dilation=(1, 1)), lambda: conv(dilation=2)),
    Fault("channel groups crossed", convolution.Geometry, "contract", _conv_groups_crossed, lambda: conv(groups=2)),
    Fault("samples crossed in a convolution", convolution.Geometry, "contract", _conv_groups_crossed, conv),
    Fault("convolution's sum unclipped", convolution.ConvolutionSite, "weighted", _unweighted,
          lambda: (nn.Conv3d(2, 2, 2), rows(4, 2, 3, 3, 3))),
    Fault("ghost norm of the mean", matmul, "ghost_square_norms", _norm_of_mean,
          lambda: (nn.Linear(50, 60), rows(4, 2, 50))),
    Fault("norm for its square", matmul, "ghost_square_norms", lambda f: lambda *args: f(*args).sqrt(), linear),
    Fault("stale activation", matmul.MatmulSite, "per_sample", _rolled,
          lambda: (nn.Linear(3, 4), rows(4, 3, 3))),
    Fault("weights applied twice", matmul.MatmulSite, "weighted", _twice_weighted,
          lambda: (nn.Linear(50, 60), rows(4, 2, 50))),
    Fault("batch mean for the sum", sums.SumSite, "weighted", _times(0.25), linear),
    Fault("divisor of a mean forgotten", sums.SumSite, "per_sample", _times(3.0), lambda: (Mean(), rows(4, 3))),
    Fault("bias of half weight in the norm", sums.SumSite, "per_sample", _times(0.5), linear),
    Fault("padding row trained", embedding.EmbeddingSite, "flat", _with(padding=-1),
          lambda: (Table(lookup, padding=2), tokens())),
    Fault("wrong padding row", embedding.EmbeddingSite, "flat", _with(padding=0),
          lambda: (Table(lookup, padding=2), tokens())),
    Fault("repeated ids counted once", embedding.EmbeddingSite, "weighted", _overwriting,
          lambda: (Table(lookup), tokens())),
    Fault("repeated ids as separate rows", embedding.EmbeddingSite, "square_norms_of_flat", _lookups_apart,
          lambda: (Table(lookup), tokens())),
    Fault("cross term dropped", joint.JointSite, "_cross", _times(0), lambda: (Table(tied), tokens())),
    Fault("cross term once", joint.JointSite, "_cross", _times(0.5), lambda: (Table(tied), tokens())),
    Fault("second use lost", joint.JointSite, "_split", _last_term_lost, lambda: (Table(tied), tokens())),
    Fault("assigned for added", scatter.ScatterSite, "_call", _no_scatter_add,
          lambda: (Table(lambda table, i: table.weight[i]), tokens())),
    Fault("layer norm's input not normalised", norms.LayerNormSite, "per_sample", _raw_activation,
          lambda: (nn.LayerNorm(4), rows(4, 3, 4))),
    Fault("layer norm's sum over all samples", norms.LayerNormSite, "weighted", _unweighted,
          lambda: (nn.LayerNorm(400), rows(4, 3, 400))),
    Fault("statistics of another group", norms.GroupNormPart, "compute", _groups_swapped,
          lambda: (nn.GroupNorm(2, 4), rows(4, 4, 5))),
    Fault("frames given to neighbours", layout.Layout, "blocks", _frames_to_neighbours,
          lambda: (Frames(nn.Linear(3, 2)), rows(4, 3, 3))),
    Fault("norm before a weight's parametrization", contributions.Finder, "contributions", _always_isometric,
          lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), rows(4, 3))),
    Fault("one branch detached", contributions.Suffix, "each", _first_branch_detached,
          lambda: ((lambda layer: nn.Sequential(layer, nn.Tanh(), layer))(nn.Linear(3, 3)), rows(4, 3))),
    Fault("small gradients scaled up", kinds, "clip_factors", _unclamped, linear),
    Fault("clipped by the largest parameter's norm", plan, "_total", _largest_only, linear),
    Fault("vmap averages over the batch", fallback, "vmap_gradients", _mean_over_batch, _python_state),
]  # fmt: skip
