"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Fault:
    """``change(original)`` takes the place of the attribute (or the item) ``name`` of ``owner``.

    Attributes:
        what: in words; the name of the fault.
        happened: where this, or something like it, really happened.
        settings: of the audit, where the fault needs other ones than the usual.
    """

    what: str
    owner: Any
    name: str
    change: Change
    happened: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if isinstance(self.owner, dict):
                patch.setitem(self.owner, self.name, self.change(self.owner[self.name]))
            else:
                patch.setattr(self.owner, self.name, self.change(getattr(self.owner, self.name)))
            yield
