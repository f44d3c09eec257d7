"""Copies that keep what a model is, for models that Python's deepcopy refuses or quietly gets wrong."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpcheck.errors import DpcheckError
from dpcheck.fixes.copying import duplicate, replace_everywhere


class Locked(nn.Module):
    """Holds what deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.twice = self.a
        self.rnn = nn.LSTM(3, 2)
        self.lock = threading.Lock()
        self.cache = {"scaled": [self.a.weight * 2], "lock": (self.lock, 1)}
        self.chance = torch.Generator().manual_seed(3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.twice(x)) + self.table


def no_storage_shared(a: nn.Module, b: nn.Module) -> bool:
    ours = {t.data_ptr() for t in (*a.parameters(), *a.buffers())}
    return not ours & {t.data_ptr() for t in (*b.parameters(), *b.buffers())}


def test_what_deepcopy_refuses_is_rebuilt() -> None:
    model: Any = Locked().eval()
    copied = duplicate(model)
    new: Any = copied.model
    assert copied.shared == ("lock",) and new.lock is model.lock and new.cache["lock"][0] is model.lock
    assert no_storage_shared(model, new) and new.state_dict().keys() == model.state_dict().keys()
    assert new.a is new.twice and new.a.weight is new.b.weight and not new.training
    assert torch.equal(new.cache["scaled"][0], model.cache["scaled"][0]) and not new.cache["scaled"][0].requires_grad
    x = torch.randn(2, 3)
    assert torch.equal(new(x), model(x))
    drawn = torch.rand(2, generator=new.chance)
    assert torch.equal(drawn, torch.rand(2, generator=model.chance)), "the copy's chance moved the original's"
    assert torch.equal(new.rnn(x)[0], model.rnn(x)[0])
    new.rnn.weight_ih_l0.data.zero_()
    assert not torch.equal(new.rnn(x)[0], model.rnn(x)[0])


def test_functions_over_modules_are_rebuilt_over_the_copies() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.run = lambda x: self.layer(x)
            layer = self.layer
            self.table = {"run": lambda x, layer=layer: layer(x)}
            self.register_forward_hook(lambda *_: layer.weight.sum() and None)

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x) + self.table["run"](x)

    model: Any = Closed()
    model.method = model.forward
    new: Any = duplicate(model).model
    x = torch.randn(2, 3)
    old = model(x)
    assert torch.equal(new(x), old)
    with torch.no_grad():
        new.layer.weight.zero_()
        new.layer.bias.zero_()
    assert not new(x).any() and not new.method(x).any() and torch.equal(model(x), old)
    (hook,), (original,) = new._forward_hooks.values(), model._forward_hooks.values()
    assert hook is not original and hook.__closure__[0].cell_contents is new.layer


def test_a_replaced_forward_runs_the_copy() -> None:
    model: Any = nn.Linear(3, 3)
    inner = model.forward
    model.forward = lambda x: 2 * inner(x)
    new = duplicate(model).model
    with torch.no_grad():
        new.weight.zero_(), new.bias.zero_()
    assert not new(torch.randn(2, 3)).any() and model(torch.randn(2, 3)).any()


def test_attributes_and_hooks_of_parameters_come_along_and_gradients_do_not() -> None:
    model: Any = nn.Linear(3, 1)
    model.weight.no_decay = True
    model.weight.register_hook(lambda g: 0 * g)
    model(torch.randn(4, 3)).sum().backward()
    new: Any = duplicate(model).model
    assert new.weight.no_decay and new.weight.grad is None and model.weight.grad is not None
    new(torch.randn(4, 3)).sum().backward()
    assert not new.weight.grad.any() and new.bias.grad.any() and len(model.weight._backward_hooks) == 1


def test_a_tensor_that_cannot_be_copied_is_named() -> None:
    class Stubborn(nn.Parameter):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("only one of me")

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = Stubborn(torch.zeros(3, 3))
    with pytest.raises(DpcheckError, match="only one of me") as error:
        duplicate(model)
    assert error.value.where == "1._parameters['weight']" and error.value.next


def test_a_module_is_replaced_wherever_it_is_held() -> None:
    old, new, model = nn.Linear(3, 3), nn.ReLU(), nn.Module()
    held: Any = model
    held.first, held.again, held.inner = old, old, nn.Sequential(old)
    held.order, held.by_name, held.pair = [old, 1], {"x": old}, (1, old)
    vars(held)["hidden"] = old
    assert replace_everywhere(model, old, new) is model
    found = [held.first, held.again, held.inner[0], held.order[0], held.by_name["x"], held.pair[1], held.hidden]
    assert all(item is new for item in found)
    assert replace_everywhere(old, old, new) is new
