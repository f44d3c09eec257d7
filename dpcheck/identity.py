"""What a model, its loss and its batches are, in digests that are the same in another process.

Values of weights are left out: they change in training. Code is compared as bytecode without line numbers, so comments
and layout do not count; what functions outside the model's classes and the loss do is seen in the graph alone.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import Capture, CaptureFailure, LossFn, capture
from dpcheck.drawing import USUAL
from dpcheck.passes import SIZES, resized

_APART = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LENGTH = 32


def digest(value: Any) -> str:
    """Of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def model_of(model: nn.Module) -> dict[str, dict[str, str]]:
    """The model by part: ``modules``, ``parameters`` and ``buffers`` by path, ``code`` by class."""
    ties: dict[int, str] = {}
    parameters = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        first = ties.setdefault(id(p), name)
        trained = "trainable" if p.requires_grad else "frozen"
        parameters[name] = f"{_form(p)} {trained}" if first == name else f"the same as {first}"
    return {
        "modules": {path: digest(_module(module)) for path, module in model.named_modules()},
        "parameters": parameters,
        "buffers": {name: _form(b) for name, b in model.named_buffers()},
        "code": {_called(kind): digest(list(_class(kind))) for kind in {type(m) for m in model.modules()}},
    }


def code_of(function: Any) -> str:
    """A digest of what a function, a method, a partial or a callable object does: its code, defaults and closure."""
    return digest(_code(function))


def form_of(batch: Any) -> list[str]:
    """The shape class of a batch: the path, dtype and shape of every tensor but for the number of samples.

    A list is as good as a tuple: collating makes the one of the other.
    """
    leaves, _ = pytree.tree_flatten_with_path(batch)
    return [f"{pytree.keystr(path)} {_leaf(leaf)}".strip() for path, leaf in leaves]


def graph_of(model: nn.Module, loss_fn: LossFn, batch: Any) -> str | None:
    """A digest of the joint graph for batches of the form of ``batch``, whatever its size; ``None`` without a graph."""
    few = resized(batch, SIZES[0])
    result = capture(model, loss_fn, few)
    if isinstance(result, Capture) and result.touched.python_random:
        result = capture(model, loss_fn, few, chance=USUAL)
    return None if isinstance(result, CaptureFailure) else digest(list(_nodes(result.graph)))


def _nodes(graph: fx.GraphModule) -> Iterator[Any]:
    number = {node: f"%{i}" for i, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        arguments = fx.node.map_arg((node.args, node.kwargs), number.__getitem__)
        target = str(node.target) if node.op == "call_function" else node.op
        constant = _content(getattr(graph, node.target)) if node.op == "get_attr" else ""
        outputs = [_form(out) for out in pytree.tree_leaves(node.meta.get("val")) if isinstance(out, Tensor)]
        yield target, repr(arguments), constant, outputs


def _content(constant: Any) -> str:
    if not isinstance(constant, Tensor):
        return type(constant).__name__
    values = constant.detach().cpu()
    return f"{_form(constant)} {hashlib.sha256(repr(values.tolist()).encode()).hexdigest()}"


def _form(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} {t.device.type}"


def _leaf(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    rest = "".join(f", {size}" for size in leaf.shape[1:])
    return f"{str(leaf.dtype).removeprefix('torch.')} [B{rest}]"


def _module(module: nn.Module) -> Any:
    own = {name: _value(value) for name, value in vars(module).items() if name not in _APART}
    return _called(type(module)), module.training, list(module._modules), own


def _value(value: Any, depth: int = 4) -> Any:
    """A plain value as it is; of an object only its class, for its identity means nothing elsewhere."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth and isinstance(value, Mapping):
        return [
            [repr(k) if isinstance(k, _PLAIN) else _called(type(k)), _value(v, depth - 1)] for k, v in value.items()
        ]
    if depth and isinstance(value, list | tuple):
        return [_value(v, depth - 1) for v in value]
    if depth and isinstance(value, set | frozenset):
        return sorted(json.dumps(_value(v, depth - 1)) for v in value)
    if isinstance(value, FunctionType | MethodType | functools.partial):
        return _code(value)
    return _form(value) if isinstance(value, Tensor) else _called(type(value))


def _called(kind: type) -> str:
    """A class's name; of the user's own without the module, which is another one where the file is imported."""
    library = kind.__module__.partition(".")[0] == "torch"
    return f"{kind.__module__}.{kind.__qualname__}" if library else kind.__qualname__


def _class(kind: type) -> Iterator[Any]:
    """What a class and its bases below torch define."""
    for base in kind.__mro__:
        if base is object or base.__module__.partition(".")[0] == "torch":
            continue
        for name, value in sorted(vars(base).items()):
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(inner, FunctionType):
                yield [base.__qualname__, name, _code(inner)]
            elif not name.startswith("__") and isinstance(value, _PLAIN):
                yield [base.__qualname__, name, repr(value)]


def _code(function: Any) -> Any:
    if isinstance(function, functools.partial):
        return ["partial", _code(function.func), _value(function.args), _value(function.keywords)]
    if isinstance(function, MethodType):
        return ["method", _called(type(function.__self__)), _code(function.__func__)]
    function = inspect.unwrap(function) if callable(function) else function
    if isinstance(function, FunctionType):
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        defaults = [_value(function.__defaults__), _value(function.__kwdefaults__)]
        return ["function", _bytecode(function.__code__, function.__doc__), cells, defaults]
    if isinstance(function, nn.Module):
        return ["module", model_of(function)]
    return ["object", _called(type(function)), list(_class(type(function))), _value(getattr(function, "__dict__", {}))]


def _cell(cell: Any) -> Any:
    try:
        held = cell.cell_contents
    except ValueError:  # not filled yet
        return "empty"
    return held.__qualname__ if isinstance(held, FunctionType) else _value(held)


def _bytecode(code: CodeType, doc: str | None = None) -> Any:
    constants = [
        _bytecode(c) if isinstance(c, CodeType) else _value(c)
        for i, c in enumerate(code.co_consts)
        if not (i == 0 and c is not None and c == doc)
    ]
    return [
        code.co_code.hex(),
        constants,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_flags & ~inspect.CO_NESTED,
    ]
