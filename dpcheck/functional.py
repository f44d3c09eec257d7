"""Rewrites a captured graph without in-place operations, keeping what every node knows of its origin."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# These write their running statistics though their schemas do not say so.
_WRITES_IN_SECRET = frozenset({torch.ops.aten.native_batch_norm.default, torch.ops.aten.cudnn_batch_norm.default})
_PASS_THROUGH = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})
# The number of leading arguments that these demand contiguous, and that a kernel before them may lay out otherwise.
_CONTIGUOUS = {torch.ops.aten.native_group_norm.default: 1, torch.ops.aten.native_group_norm_backward.default: 2}
_VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default})


class _Carry(TorchDispatchMode):
    """Gives the nodes of the new graph the meta of the node that is being replayed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meta: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        mode = get_proxy_mode()
        for made in reversed(mode.tracer.graph.nodes) if mode is not None else ():
            if "half" in made.meta or made.op == "placeholder":
                break
            made.meta.update(self.meta)
        return out


class _Replay(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, carry: _Carry) -> None:
        super().__init__(module)
        self.carry = carry
        self.free = _never_written_through(module.graph)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            self.carry.meta = {key: n.meta[key] for key in ("half", "origin", "draw") if key in n.meta}
        if n in self.free:
            # Without mutation some values lie otherwise in memory, so that a view may be impossible.
            given: Any = self.map_nodes_to_values(n.args, n)
            return given[0].reshape(given[1])
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in _WRITES_IN_SECRET or args[3] is None or not args[5]:
            return super().call_function(target, args, kwargs)
        out, mean, rstd = torch.ops.aten._native_batch_norm_legit.default(*args)
        reserve = () if target is torch.ops.aten.native_batch_norm.default else (out.new_empty(0, dtype=torch.uint8),)
        return (out, mean, rstd, *reserve)


def mutates(node: fx.Node) -> bool:
    """Whether the op writes to an argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def written_constant(graph: fx.GraphModule) -> fx.Node | None:
    """The first op that writes to a tensor of the graph module itself, or to a view of one.

    Such a tensor is no input: what the write leaves in it for later reads would be lost.
    """
    constants: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (node.target is operator.getitem and node.args[0] in constants):
            constants.add(node)
        schema = getattr(node.target, "_schema", None)
        for argument, given in zip(schema.arguments, node.args, strict=False) if schema is not None else ():
            shared = argument.alias_info is not None and any(leaf in constants for leaf in pytree.tree_leaves(given))
            if shared and argument.alias_info.is_write:
                return node  # type: ignore[no-any-return]
            constants |= {node} if shared else set()
    return None


def _never_written_through(graph: fx.Graph) -> set[fx.Node]:
    """The views that are as good as copies: nothing writes to their storage after them."""
    roots: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.nodes):
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        aliased = node.target is operator.getitem or any(r.alias_info is not None for r in returns)
        source = node.args[0] if aliased and node.args and isinstance(node.args[0], fx.Node) else node
        roots[node] = roots.get(source, node)
        if mutates(node) or node.target in _WRITES_IN_SECRET:
            for argument in node.all_input_nodes:
                last[roots[argument]] = place
    places = enumerate(graph.nodes)
    return {node for place, node in places if node.target in _VIEWS and last.get(roots[node], -1) < place}


def functionalized(graph: fx.GraphModule) -> fx.GraphModule:
    """The same function without mutation, without detaches and without dead nodes."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    if any(mutates(node) or node.target in _WRITES_IN_SECRET for node in calls):
        values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        carry = _Carry()
        replay = _Replay(graph, carry)

        def run(*arguments: Any) -> Any:
            with carry, torch.no_grad():
                return replay.run(*arguments)

        with _fake_mode(values):
            graph = make_fx(functionalize(run, remove="mutations"))(*values)
        _drop_write_back(graph)
    _tidy(graph)
    return graph


@contextmanager
def _fake_mode(values: list[Any]) -> Iterator[None]:
    """The mode of the captured values, which also admits the constants that the graph holds."""
    mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        with mode:
            yield
    finally:
        mode.allow_non_fake_inputs = before


def _drop_write_back(graph: fx.GraphModule) -> None:
    """Removes the copies into the inputs: the new values are outputs already."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            node.replace_all_uses_with(node.args[1])
            graph.graph.erase_node(node)


def _tidy(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in _PASS_THROUGH:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target is operator.getitem:
            node.meta.update({key: node.args[0].meta[key] for key in ("half", "origin") if key in node.args[0].meta})
        elif node.target in _VIEWS:
            # Some kernels lay their results out in another way than their fake counterparts say (layer norm's backward
            # keeps the strides of its input), so that a view that was traced cannot always be taken. Nothing writes
            # through it any more, hence a copy is as good.
            node.target = torch.ops.aten.reshape.default
        node.meta.setdefault("half", "forward")
        node.meta.setdefault("origin", None)
        for argument in node.args[: _CONTIGUOUS.get(node.target, 0)]:
            with graph.graph.inserting_before(node):
                dense = graph.graph.call_function(torch.ops.aten.contiguous.default, (argument,))
            dense.meta = {**node.meta, "val": argument.meta["val"]}
            node.replace_input_with(argument, dense)
    # Inputs and outputs are flat, whether the graph was traced once or twice.
    graph.graph.set_codegen(fx.graph.CodeGen())
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = (tuple(pytree.tree_leaves(output.args[0])),)
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.recompile()
