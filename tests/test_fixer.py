"""``dpcheck.fix`` on models as people write them: what is mended, what is kept, what is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dpcheck.engine import clipped_grads
from torch import Tensor, nn

import dpcheck
from dpcheck.fixer import Change, FixResult

Y = torch.tensor([0, 1, 2, 0, 1, 2])
IMAGES, ROWS, IDS = torch.randn(6, 3, 8, 8), torch.randn(6, 4), torch.randint(0, 9, (6, 5))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class BasicBlock(nn.Module):
    """A residual block as in ResNet, in-place activations and a projected shortcut."""

    def __init__(self, inside: int, out: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, 2, 1, bias=False), norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(inside, out, 1, 2, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(h)) + self.down(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(BasicBlock(16, 32), BasicBlock(32, 64))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def depthwise(inside: int, out: int) -> list[nn.Module]:
    """A MobileNet-like pair of convolutions."""
    wide = nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False)
    narrow = nn.Conv2d(inside, out, 1, bias=False)
    return [wide, nn.BatchNorm2d(inside), nn.ReLU6(inplace=True), narrow, nn.BatchNorm2d(out), nn.ReLU6(inplace=True)]


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


def mobile() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *depthwise(8, 16), *depthwise(16, 32), *head(32))


def fused() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), NormAct(16), nn.Conv2d(16, 16, 3), NormAct(16), *head(16))


def mlp() -> nn.Module:
    layers = [nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3), nn.BatchNorm1d(3)]
    return nn.Sequential(*layers, nn.Linear(3, 3))


def sync() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *head(8)))


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), *head(8))
    model(IMAGES)
    return model


def volumes() -> nn.Module:
    unflatten = nn.Unflatten(2, (2, 4))
    return nn.Sequential(unflatten, nn.Conv3d(3, 8, 2), nn.BatchNorm3d(8, affine=False), nn.Flatten(), nn.LazyLinear(3))


def materialised(model: nn.Module, x: Tensor) -> nn.Module:
    model(x)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet": (ResNet, IMAGES),
    "mobile": (mobile, IMAGES),
    "fused": (fused, IMAGES),
    "mlp": (mlp, ROWS),
    "sync": (sync, IMAGES),
    "lazy": (lazy, IMAGES),
    "volumes": (lambda: materialised(volumes(), IMAGES), IMAGES),
}


def fixed(model: nn.Module, x: Tensor, **options: Any) -> FixResult:
    return dpcheck.fix(model, cross_entropy, (x, Y), unsafe=True, **options)


def one(result: FixResult) -> Change:
    (change,) = result.changes
    return change


@pytest.mark.parametrize("name", MODELS)
def test_models_with_batch_norm_become_private(name: str) -> None:
    make, x = MODELS[name]
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.rand_like(p))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    result = fixed(model, x)
    assert not result.before.ok and result.report.ok, result.report.diagnostics
    assert len(result.changes) == norms and all(c.applied and c.applicability == "unsafe" for c in result.changes)
    assert all(c.output_change is not None and c.output_change > 1e-6 for c in result.changes)
    assert all("The function changes" in c.what for c in result.changes) and result.loss_change > 0
    kept = {k: v for k, v in state.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    new = result.model.state_dict()
    assert new.keys() == kept.keys() and all(torch.equal(new[k], kept[k]) for k in kept)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and type(result.model) is type(model)
    assert dpcheck.verify(result.model, cross_entropy, (x, Y)).ok
    grads, norms_of = clipped_grads(result.model, cross_entropy, (x, Y), max_grad_norm=1.0)
    assert all(bool(g.isfinite().all()) for g in grads.values()) and len(norms_of) == len(Y)
    torch.testing.assert_close(result.model.eval()(x[:2]), result.model(x)[:2])


def test_the_given_model_is_untouched() -> None:
    model: Any = mlp()
    seen: list[str] = []
    model[1].register_forward_hook(lambda *_: seen.append("x"))
    model[0].note = {"a": [1]}
    cross_entropy(model, (ROWS, Y)).sum().backward()
    modules, grads = dict(model.named_modules()), {n: p.grad.clone() for n, p in model.named_parameters()}
    state, hooks = {k: v.clone() for k, v in model.state_dict().items()}, dict(model[1]._forward_hooks)
    result: Any = fixed(model, ROWS)
    assert dict(model.named_modules()) == modules and dict(model[1]._forward_hooks) == hooks and model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model[0].note == {"a": [1]}
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters())
    assert result.model[0].note == {"a": [1]} and result.model[0].note is not model[0].note
    seen.clear()
    result.model(ROWS)
    assert seen == ["x"], "the fixed layer lost its hook, or runs twice"
    assert not {t.data_ptr() for t in result.model.parameters()} & {t.data_ptr() for t in model.parameters()}


def test_shared_modules_and_ties_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 3)
            self.norm = self.also = nn.BatchNorm1d(32)
            self.tied = nn.BatchNorm1d(32)
            self.tied.weight = self.norm.weight
            self.order = [self.norm, self.tied]

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.tied(self.also(self.b(self.norm(self.a(x))))))

    result: Any = fixed(Shared(), ROWS)
    model = result.model
    assert result.report.ok and [c.module for c in result.changes] == ["norm", "tied"]
    assert model.norm is model.also is model.order[0] and isinstance(model.norm, nn.GroupNorm)
    assert model.tied.weight is model.norm.weight and model.tied.bias is not model.norm.bias
    assert model.order[1] is model.tied


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_eps_and_frozen_weights_stay(dtype: torch.dtype) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32, eps=0.25), nn.Linear(32, 3)).to(dtype)
    model[1].requires_grad_(False)
    result: Any = fixed(model, ROWS.to(dtype))
    assert result.report.ok and result.model[1].weight.dtype == dtype and result.model[1].eps == 0.25
    assert not result.model[1].weight.requires_grad and result.model[1].training


def test_frozen_batch_norm_is_made_so_for_good_and_nothing_changes() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), NormAct(8), *head(8))
    model(IMAGES)
    model[1].eval(), model[2].eval()
    result = dpcheck.fix(model, cross_entropy, (IMAGES, Y))
    assert [(c.module, c.applicability, c.applied, c.output_change) for c in result.changes] == [
        ("1", "safe", True, 0.0),
        ("2", "safe", True, 0.0),
    ]
    assert (
        result.report.ok and result.loss_change == 0 and result.model.state_dict().keys() == model.state_dict().keys()
    )
    result.model.train()
    before = {k: v.clone() for k, v in result.model.state_dict().items()}
    assert torch.equal(result.model(IMAGES), model(IMAGES))
    assert all(torch.equal(v, before[k]) for k, v in result.model.state_dict().items())
    assert dpcheck.check(result.model, cross_entropy, (IMAGES, Y)).ok
    assert not dpcheck.check(model.train(), cross_entropy, (IMAGES, Y)).ok
    assert dpcheck.fix(result.model, cross_entropy, (IMAGES, Y)).report.ok


def test_what_batch_norm_becomes_can_be_chosen() -> None:
    found: dict[str, Any] = {}
    for to in ("group", "layer", "instance", "frozen"):
        result: Any = fixed(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), *head(16)), IMAGES, batch_norm_to=to)
        assert result.report.ok and one(result).applicability == "unsafe"
        found[to] = getattr(result.model[1], "num_groups", type(result.model[1]).__name__)
    assert found == {"group": 4, "layer": 1, "instance": 16, "frozen": "FrozenBatchNorm"}
    with pytest.raises(dpcheck.DpcheckError, match="choose one of: group, layer, instance, standardised, frozen"):
        fixed(mlp(), ROWS, batch_norm_to="batch")


def test_without_leave_nothing_unsafe_is_applied() -> None:
    model = mlp()
    result = dpcheck.fix(model, cross_entropy, (ROWS, Y))
    assert [c.applied for c in result.changes] == [False, False] and result.report.verdict == "mixing"
    assert all("unsafe=True" in (c.reason or "") for c in result.changes) and result.loss_change == 0
    assert result.model is not model and isinstance(result.model.get_submodule("1"), nn.BatchNorm1d)


def test_a_norm_over_one_or_two_values_is_refused() -> None:
    for width in (1, 2):
        layers = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
        change = one(fixed(layers, ROWS))
        assert not change.applied and change.reason is not None
        assert "less than three values" in change.reason and "frozen" in change.reason
        assert one(fixed(layers, ROWS, batch_norm_to="frozen")).applied


def embedding(**options: Any) -> Any:
    return nn.Sequential(nn.Embedding(9, 4, **options), nn.Flatten(), nn.Linear(20, 3))


def test_embeddings() -> None:
    scaled = dpcheck.fix(embedding(scale_grad_by_freq=True), cross_entropy, (IDS, Y))
    assert scaled.report.ok and one(scaled).output_change == 0 and "gradients lose that scale" in one(scaled).what
    dense: Any = dpcheck.fix(embedding(sparse=True), cross_entropy, (IDS, Y))
    assert dense.report.ok and one(dense).parameter == "0.weight" and not dense.model[0].sparse
    bounded = embedding(max_norm=0.5, sparse=True)
    rows, before = bounded[0].weight.norm(dim=1), bounded[0].weight.clone()
    result: Any = fixed(bounded, IDS)
    assert result.report.ok and {(c.code, c.applied) for c in result.changes} == {("DP302", True), ("DP501", True)}
    expected = before * (0.5 / rows).clamp(max=1)[:, None]
    torch.testing.assert_close(result.model[0].weight, expected)
    assert torch.equal(bounded[0].weight, before) and bounded[0].max_norm == 0.5
    torch.testing.assert_close(cross_entropy(result.model, (IDS, Y)), cross_entropy(bounded, (IDS, Y)))


def test_instance_norm_loses_its_statistics() -> None:
    norm = nn.InstanceNorm2d(4, track_running_stats=True, affine=True)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), norm, *head(4))
    result: Any = fixed(model, IMAGES)
    assert result.report.ok and one(result).applicability == "unsafe" and "eval mode" in one(result).what
    assert list(result.model[1].state_dict()) == ["weight", "bias"]
    assert torch.equal(result.model.eval()(IMAGES), model.train()(IMAGES))


def test_a_model_that_is_a_norm_itself_is_replaced() -> None:
    result = fixed(nn.BatchNorm1d(4), ROWS)
    assert isinstance(result.model, nn.GroupNorm) and result.report.ok and one(result).module == ""


def test_a_clean_model_is_copied_and_left_alone() -> None:
    model = nn.Linear(4, 3)
    result = dpcheck.fix(model, cross_entropy, (ROWS, Y), unsafe=True)
    assert result.changes == () and result.report == result.before and result.model is not model
