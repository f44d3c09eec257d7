"""Where every module of a model was built: the calls that led to it, noted while the model file runs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from torch import nn

from dpcheck.diagnostic import Location
from dpcheck.source import is_ours, span_of

# In the module's own dictionary, so that a deep copy (as nn.Transformer makes of its layers) knows its original's.
_MARK = "_dpcheck_built"
Calls = tuple[Location, ...]


class Built:
    """Notes constructions while :meth:`noting`; :meth:`of` takes the notes off a model."""

    def __init__(self) -> None:
        self._spans: dict[tuple[CodeType, int], Location] = {}
        self._noted: list[weakref.ref[nn.Module]] = []

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within it, every construction of a module is noted."""
        original: Callable[..., None] = nn.Module.__init__
        root = sys._getframe(0)

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            vars(module)[_MARK] = self._calls(module, root)
            self._noted.append(weakref.ref(module))

        nn.Module.__init__ = init  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.__init__ = original  # type: ignore[method-assign]

    def _calls(self, module: nn.Module, root: FrameType) -> Calls:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and _is_method_of(frame, module):  # the constructors of its class and its bases
            frame = frame.f_back
        calls: list[Location] = []
        while frame is not None and frame is not root and not is_ours(frame.f_code.co_filename):
            calls.append(self._span(frame))
            frame = frame.f_back
        return tuple(calls)

    def _span(self, frame: FrameType) -> Location:
        key = frame.f_code, frame.f_lasti
        if key not in self._spans:
            self._spans[key] = span_of(frame.f_code, frame.f_lasti, frame.f_lineno, frame.f_code.co_filename)
        return self._spans[key]

    def of(self, model: nn.Module) -> Mapping[str, Calls]:
        """The calls that built every module, innermost first, by each of its paths; none for one that was unpickled."""
        found = {
            path: vars(module)[_MARK]
            for path, module in model.named_modules(remove_duplicate=False)
            if _MARK in vars(module)
        }
        for module in [*model.modules(), *(m for ref in self._noted if (m := ref()) is not None)]:
            vars(module).pop(_MARK, None)
        return found


def _is_method_of(frame: FrameType, module: nn.Module) -> bool:
    code = frame.f_code
    return code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is module
