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
        also: (owner, name, change) of what else must change for the fault to show on small models.
    """

    what: str
    owner: Any
    name: str
    change: Change
    happened: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    also: tuple[tuple[Any, str, Change], ...] = ()

    @contextmanager
    def planted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, change in ((self.owner, self.name, self.change), *self.also):
                if isinstance(owner, dict):
                    patch.setitem(owner, name, change(owner[name]))
                else:
                    patch.setattr(owner, name, change(getattr(owner, name)))
            yield
