"""The one exception that users see: what is wrong, where, and the next command to run."""

from __future__ import annotations


class DpcheckError(Exception):
    """Bad input, or a request that cannot be served privately.

    Args:
        what: what is wrong, with the offending name and value.
        where: parameter name, module path or ``file:line``, if there is one.
        next: the next command or line of code to run.
    """

    def __init__(self, what: str, where: str | None = None, next: str | None = None) -> None:
        self.what, self.where, self.next = what, where, next
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The message as separate lines, for terminals."""
        lines = [self.what]
        if self.where:
            lines.append(f"  at: {self.where}")
        if self.next:
            lines.append(f"  next: {self.next}")
        return lines


def a_type(value: object) -> str:
    """The type of a value with its article, such as ``an int``, for messages."""
    name = type(value).__name__
    return f"a{'n' * name.lower().startswith(tuple('aeio'))} {name}"
