"""What a forward computes over the batch itself: the module's own forward is rewritten where torch.fx traces it.

Only the lines of the findings are touched. The module keeps its type, its children and its methods; its forward
becomes the traced one, with statistics over each sample's own axes, with sizes of the batch as constants, and with a
number for each sample where statistics only led to one for the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dpcheck.capture import first_line
from dpcheck.determinism import FixedChance
from dpcheck.diagnostic import Location
from dpcheck.errors import DpcheckError
from dpcheck.fixes import own_axes, own_tokens, sizes
from dpcheck.fixes.copying import duplicate
from dpcheck.fixes.mixing import mixed
from dpcheck.fixes.trial import Seen
from dpcheck.sandbox import sandbox

# The rules whose findings may have another form: statistics over the batch, and its size in arithmetic.
CODES = frozenset({"DP103", "DP108"})
_GATHERED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Rewritten:
    """Mixed into a module: the traced forward of its present mode."""

    dpcheck_forward: Mapping[bool, Callable[..., Any]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.dpcheck_forward[self.training](self, *args, **kwargs)  # type: ignore[attr-defined]


class _Tracer(fx.Tracer):
    """Children are called as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def changes(module: nn.Module, seen: Seen, lines: Collection[Location]) -> tuple[str, ...]:
    """What :func:`rewrite` changes in a module, a clause for each place.

    Args:
        module: untouched.
        seen: its first call.
        lines: of the findings.

    Raises:
        DpcheckError: as :func:`rewrite`.
    """
    return _rewritten(duplicate(module).model, seen, lines)[1]


def rewrite(module: nn.Module, seen: Seen, lines: Collection[Location]) -> nn.Module:
    """The module itself, with another forward. One that was rewritten, for all of its findings, stays as it is.

    Raises:
        DpcheckError: if its forward cannot be traced, or the lines hold nothing that has another form.
    """
    if not isinstance(module, _Rewritten):
        module.dpcheck_forward = _rewritten(module, seen, lines)[0]  # type: ignore[assignment]
        mixed(module, _Rewritten, "WithoutBatch")
    return module


def _rewritten(
    module: nn.Module, seen: Seen, lines: Collection[Location]
) -> tuple[dict[bool, Callable[..., Any]], tuple[str, ...]]:
    forwards: dict[bool, Callable[..., Any]] = {}
    clauses: dict[str, None] = {}
    call = _Call(module, seen)
    for mode in (True, False):
        copy = duplicate(module).model
        copy.training = mode
        graph = call.traced(copy)
        before = call.output(copy, copy.forward)
        if not _same(before, call.output(copy, call.forward(graph, copy))):
            raise DpcheckError("the forward that torch.fx traces is another function")
        clauses |= dict.fromkeys(_change(graph, call.values(copy, graph), lines, call.rows))
        forwards[mode] = call.forward(graph)
        call.refuse_other_numbers(copy, before, call.output(copy, call.forward(graph, copy)))
    if not clauses:
        raise DpcheckError("the line holds no statistic that could be taken over one sample")
    return forwards, tuple(clauses)


def _change(graph: fx.Graph, values: Mapping[fx.Node, Any], lines: Collection[Location], rows: int) -> list[str]:
    nodes = [node for node in graph.nodes if any(_is_at(node, line) for line in lines)]
    numbers = own_tokens.of_numbers(graph, nodes, values)
    clauses = own_tokens.apart(graph, numbers, values, rows) if numbers else []
    for node in nodes:
        if node in graph.nodes:
            clause = sizes.fixed(node, values) or own_axes.reduced(graph, node, values)
            clauses += [clause] if clause else []
    graph.lint()
    return clauses


def _is_at(node: fx.Node, line: Location) -> bool:
    numbers = range(line.line, (line.end_line or line.line) + 1)
    return any(f'File "{line.file}", line {number},' in (node.stack_trace or "") for number in numbers)


def _same(old: list[Any], new: list[Any]) -> bool:
    return len(old) == len(new) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in zip(old, new, strict=True)
    )


def _is_spread(old: Any, new: Any, rows: int) -> bool:
    """Whether a number for the batch has become one for each sample."""
    both = isinstance(old, Tensor) and isinstance(new, Tensor)
    return both and old.dim() == 0 and new.shape == (rows,)


class _Call:
    """How a module is called: which arguments are tensors, and what the others are.

    Raises:
        DpcheckError: if they cannot be told apart.
    """

    def __init__(self, module: nn.Module, seen: Seen) -> None:
        self.seen, self.signature = seen, inspect.signature(module.forward)
        if any(p.kind in _GATHERED for p in self.signature.parameters.values()):
            raise DpcheckError("its forward takes any arguments")
        given = self._bound(*seen.args, **seen.kwargs)
        self.tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
        # A branch on an argument is traced as it was taken: what is no tensor is a constant.
        self.others = {name: value for name, value in given.items() if name not in self.tensors}
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.others)):
            raise DpcheckError("its forward takes containers of tensors")
        self.rows = next((len(given[name]) for name in self.tensors if given[name].dim()), 0)

    def _bound(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def traced(self, module: nn.Module) -> fx.Graph:
        """The graph of the module's forward, whose inputs are its tensors."""
        copy = duplicate(module).model
        kind = type(copy)
        space = {"inner": kind.forward, "others": self.others, "names": self.tensors}
        names = ", ".join(self.tensors)
        exec(f"def forward(self, {names}): return inner(self, **dict(zip(names, ({names},))), **others)", space)
        copy.__class__ = type(kind.__name__, (kind,), {"forward": space["forward"]})
        try:
            with sandbox(copy) as touched, sizes.length_traced(kind):
                graph = _Tracer().trace(copy)
        except Exception as error:  # what a forward does with a proxy may fail in any way
            raise DpcheckError(f"torch.fx cannot trace its forward: {first_line(error)}") from error
        if touched.attributes or touched.python_random:
            raise DpcheckError("its forward changes Python state, which a traced one would not")
        if any(n.op == "get_attr" and "_tensor_constant" in str(n.target) for n in graph.nodes):
            raise DpcheckError("its forward makes tensors that a traced one would hold for good")
        return graph

    def forward(self, graph: fx.Graph, owner: nn.Module | None = None) -> Callable[..., Any]:
        """The function of a graph, with the arguments of the module's forward (``self`` first, if it has no owner)."""
        code = graph.python_code("self")
        space = dict(code.globals)
        exec(compile(code.src, "<forward rewritten by dpcheck>", "exec"), space)
        inner = space["forward"]

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            given = self_call._bound(*args, **kwargs)
            for name, value in self_call.others.items():
                if not (given[name] is value or given[name] == value):
                    raise DpcheckError(
                        f"the rewritten forward was traced with {name}={value!r} and is called with {given[name]!r}",
                        where=type(self).__name__,
                        next="fix the model with a batch and a loss that call it as it will be called",
                    )
            return inner(self, *(given[name] for name in self_call.tensors))

        self_call = self
        return forward if owner is None else lambda *args, **kwargs: forward(owner, *args, **kwargs)

    def output(self, module: nn.Module, forward: Callable[..., Any], row: int | None = None) -> list[Any]:
        """The leaves of what the call gave, with fixed chance; of one sample alone, if ``row`` is one."""

        def given(t: Tensor) -> Tensor:
            return t.clone() if row is None or t.shape[:1] != (self.rows,) else t[row : row + 1].clone()

        args, kwargs = pytree.tree_map_only(Tensor, given, (self.seen.args, dict(self.seen.kwargs)))
        with sandbox(module), torch.no_grad(), FixedChance():
            return pytree.tree_leaves(forward(*args, **kwargs))

    def refuse_other_numbers(self, module: nn.Module, old: list[Any], new: list[Any]) -> None:
        """Where there was one number and is one for each sample now, it is what the sample alone would have given.

        Raises:
            DpcheckError: if not.
        """
        single = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if _is_spread(a, b, self.rows)]
        for row in range(self.rows if single else 0):
            alone = self.output(module, module.forward, row)
            if any(not torch.allclose(alone[i], new[i][row], rtol=1e-4, atol=1e-6) for i in single):
                raise DpcheckError("the numbers of single samples are others than those of batches of one")

    def values(self, module: nn.Module, graph: fx.Graph) -> dict[fx.Node, Any]:
        """What every node of the graph holds in the call that was seen."""
        run = fx.Interpreter(module, garbage_collect_values=False, graph=graph)
        given = self._bound(*self.seen.args, **self.seen.kwargs)
        with sandbox(module), torch.no_grad(), FixedChance():
            run.run(*(given[name].clone() for name in self.tensors))
        return run.env
