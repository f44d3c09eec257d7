"""Memory that is free: of the device, or of the machine and the limits of this process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from dpcheck.errors import DpcheckError

# Of what is free when the engine is made; the rest is for data, optimizer, noise and what an estimate misses.
SHARE = 0.5


def budget_of(given: int | None, physical_batch_size: int | None, device: torch.device) -> int | None:
    """Bytes for one forward and backward; ``None`` for no limit.

    By default :data:`SHARE` of what is free now, if it can be found out, and no limit for who chose a batch size.

    Raises:
        DpcheckError: if ``given`` is not a positive whole number.
    """
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise DpcheckError(f"memory_budget={given!r} is not a positive whole number of bytes", "memory_budget")
        return given
    free = available(device) if physical_batch_size is None else None
    return None if free is None else int(SHARE * free)


def available(device: torch.device) -> int | None:
    """Bytes; on the CPU the least of what the machine, the control group and RLIMIT_AS leave."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return min(_free(Path("/")), default=None)


def _free(root: Path) -> Iterator[int]:
    """``root`` is that of the file system, so that tests may have one of their own."""
    machine = _fields(root / "proc/meminfo").get("MemAvailable")
    if machine is not None:
        yield machine * 1024
    for folder, limit, used in (
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _number(root / folder / limit), _number(root / folder / used)
        if most is not None and now is not None:
            # The kernel takes the page cache away before it kills.
            yield max(0, most - now + _fields(root / folder / "memory.stat").get("inactive_file", 0))
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    size = _fields(root / "proc/self/status").get("VmSize")
    if most != resource.RLIM_INFINITY and size is not None:
        yield max(0, most - size * 1024)


def _fields(path: Path) -> dict[str, int]:
    """The lines ``name: number unit`` or ``name number`` of a file; nothing where it cannot be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
