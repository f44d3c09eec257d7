"""Time and memory of one training step, against the non-private step and against peers.

    python benchmarks/step.py                              every row and method, both allocators
    python benchmarks/step.py --rows MLP,GPT --methods dpcheck,"no noise"
    python benchmarks/step.py --cpu-time                   one thread and its processor time, on a shared machine

Each row runs in a process of its own. Its methods take turns, one step each a round, so that a busy machine slows all
of them; a time is the median over the rounds, its ratio the median of the ratios to the non-private step of the same
round. Memory is the most that torch allocates at once during a step above what was alive before it, gradients too.
The time with ``reuse`` is measured with MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=-1: freed memory is reused, where
glibc's default gives large blocks back to the system and pays a page fault for each 4 KiB when it gets them again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from models import ROWS
from step_methods import METHODS, Step, Unable, build, error

# What a peer may allocate: one that needs more is told apart from one that cannot run the model at all.
LIMIT = 12 << 30
REUSE = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}
WRONG = 1e-2


def peak(step: Step) -> int:
    """Most bytes of torch's CPU allocator that are in use at once above those at the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    found = []
    stack = list(profile.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while stack:
        event = stack.pop()
        stack += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(found, key=lambda pair: pair[0]):
        now += size
        most = max(most, now)
    return most


def measure(row: int, methods: list[str], rounds: int, seconds: float, cpu: bool) -> dict[str, Any]:
    """Times [s] by method and round, peaks [bytes], and why a method could not run."""
    torch.set_num_threads(1 if cpu else 2)
    clock = time.process_time if cpu else time.perf_counter
    torch.manual_seed(0)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    made = ROWS[row].make()
    steps, unable, wrong = {}, {}, {}
    for name in methods:
        try:
            steps[name] = build(name, made)
            if name.startswith("opacus") or name == "vmap(grad)":
                wrong[name] = error(name, made)
        except Unable as reason:
            unable[name] = str(reason)
    times: dict[str, list[float]] = {name: [] for name in steps}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 5 and time.perf_counter() - start > seconds:
            break
        for name, step in list(steps.items()):
            slow = len(times[name]) >= 3 and min(times[name]) > 10 * min(times["eager"])
            if not slow:
                begin = clock()
                try:
                    step()
                except RuntimeError as reason:
                    unable[name] = str(reason)[:150]
                    del steps[name], times[name]
                else:
                    times[name].append(clock() - begin)
    peaks = {}
    for name, step in steps.items():
        try:
            peaks[name] = peak(step)
        except RuntimeError as reason:
            unable[name] = str(reason)[:150]
            del times[name]
    return {"times": times, "peaks": peaks, "unable": unable, "wrong": wrong}


def in_process(row: int, methods: list[str], options: argparse.Namespace, reuse: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(row), "--methods", ",".join(methods)]
    command += ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    command += ["--cpu-time"] * options.cpu_time
    environment = {**os.environ, **(REUSE if reuse else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"times": {}, "peaks": {}, "unable": dict.fromkeys(methods, f"exit {done.returncode}"), "wrong": {}}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ratio(times: dict[str, list[float]], name: str) -> float:
    return statistics.median(mine / base for mine, base in zip(times[name], times["eager"], strict=False))


def show(name: str, results: dict[str, dict[str, Any]]) -> None:
    """One row of the table: every method, with its ratios."""
    first = next(iter(results.values()))
    print(f"\n{name}")
    for method in [*first["times"], *first["unable"]]:
        if method in first["unable"]:
            print(f"  {method:17} cannot: {first['unable'][method]}")
            continue
        parts = []
        for label, result in results.items():
            own = result["times"].get(method)
            if own:
                time_ms = statistics.median(own) * 1e3
                parts.append(f"{label} {time_ms:8.1f} ms {ratio(result['times'], method):6.2f}x ({len(own)} runs)")
        memory, base = first["peaks"][method], first["peaks"]["eager"]
        parts.append(f"memory {memory / 2**20:7.1f} MiB {memory / base:5.2f}x")
        wrong = first["wrong"].get(method, 0.0)
        parts += [f"WRONG gradient, relative error {wrong:.2g}"] if wrong > WRONG else []
        print(f"  {method:17} " + "   ".join(parts))
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="parts of names, comma-separated (all)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (all)")
    parser.add_argument("--allocators", default="default,reuse", help="default, reuse or both")
    parser.add_argument("--rounds", type=int, default=40, help="at most so many rounds")
    parser.add_argument("--seconds", type=float, default=60, help="a row ends after so long, and 5 rounds")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor time instead of wall time")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = list(dict.fromkeys(["eager", *options.methods.split(",")]))
    if options.one is not None:
        print(json.dumps(measure(options.one, methods, options.rounds, options.seconds, options.cpu_time)))
        return
    how = "1 thread, processor time" if options.cpu_time else "2 threads"
    print(f"torch {torch.__version__}, {how}, SGD, ratios to the non-private step of the same round")
    for index, row in enumerate(ROWS):
        if not any(part in row.name for part in options.rows.split(",")):
            continue
        allocators = options.allocators.split(",")
        show(row.name, {label: in_process(index, methods, options, label == "reuse") for label in allocators})


if __name__ == "__main__":
    main()
