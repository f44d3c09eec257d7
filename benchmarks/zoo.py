"""Runs dpcheck, the isolation oracle and Opacus's validator on the models of transformers, torchvision and timm.

    python benchmarks/zoo.py [--zoo NAME ...] [--match PATTERN] [--kind KIND ...] [--exact] [--workers N] [--json PATH]

Every model runs in a process of its own, with limits on time and memory, so that none can take the others with it.
Needs transformers, timm, torchvision and opacus, of which dpcheck itself needs none. Exit code 1 when an answer is
wrong: a crash, a pass of a model whose samples mix, or an alarm on one whose samples do not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from zoo_judge import judge
from zoo_models.entry import Entry
from zoo_tables import tables, wrong

Answer = Callable[[Entry], dict[str, Any]]
ZOOS = ("transformers", "torchvision", "timm")


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for zoo in options.zoo:
        chosen = [e for e in entries_of(zoo, options.match) if not options.kind or e.kind in options.kind]
        for done in one_by_one(chosen, options, lambda e: judge(e, options.seeds, not options.no_twins, options.exact)):
            results.append({"zoo": zoo, **done})
            print(_line(results[-1]), file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    print(tables(results))
    return 1 if any(wrong(result) for result in results) else 0


def entries_of(zoo: str, match: str) -> list[Entry]:
    """The models of a zoo whose names match."""
    entries = importlib.import_module(f"zoo_models.{zoo}_zoo").entries()
    return [entry for entry in entries if re.search(match, entry.name)]


def common_options(description: str) -> argparse.ArgumentParser:
    """The options that every run over the zoos has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--zoo", nargs="+", choices=ZOOS, default=ZOOS, help="which zoos (default: all)")
    parser.add_argument("--match", default="", help="regular expression that a model's name must match")
    parser.add_argument("--workers", type=int, default=1, help="models at a time")
    parser.add_argument("--json", type=Path, help="write every detail here")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of one model")
    parser.add_argument("--gigabytes", type=int, default=12, help="limit of the address space of one model")
    return parser


def _options() -> argparse.Namespace:
    parser = common_options("dpcheck, the oracle and Opacus on the model zoos")
    parser.add_argument("--kind", nargs="+", help="such as encoder or vision (default: all)")
    parser.add_argument("--no-twins", action="store_true", help="leave out the models with batch norm replaced")
    parser.add_argument("--exact", action="store_true", help="compare clipped sums with those of single samples too")
    parser.add_argument("--seeds", type=int, default=2, help="draws of weights and batch for the oracle")
    return parser.parse_args()


def one_by_one(entries: list[Entry], options: argparse.Namespace, answer: Answer) -> Any:
    """The result of every entry, as it is finished; a fresh process, forked from this one, for each."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(entries), {}
    while waiting or running:
        while waiting and len(running) < options.workers:
            entry = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_one, args=(entry, sender, options, answer))
            process.start()
            sender.close()
            running[receiver] = (entry, process, time.monotonic())
        ready = wait(list(running), timeout=1.0)
        for receiver, (entry, process, start) in list(running.items()):
            late = time.monotonic() - start > options.seconds
            if receiver not in ready and not late:
                continue
            said = {"crash": f"no answer within {options.seconds} s"} if receiver not in ready else _receive(receiver)
            process.kill()
            process.join()
            del running[receiver]
            yield {"name": entry.name, "kind": entry.kind, "wall": time.monotonic() - start, **said}


def _receive(receiver: Connection) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        return {"crash": "the process died"}
    return answer


def _one(entry: Entry, sender: Connection, options: argparse.Namespace, answer: Answer) -> None:
    limit = options.gigabytes << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    said = answer(entry)
    said["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sender.send(said)
    sender.close()


def _line(result: dict[str, Any]) -> str:
    said = result.get("verdict") or ("crash" if "crash" in result else "broken")
    oracle = result.get("oracle", {})
    found = "-" if not oracle else "mixing" if oracle["mixing"] else "clean"
    note = "  WRONG" if wrong(result) else ""
    detail = result.get("crash") or result.get("broken") or ""
    twin = result.get("twin")
    fixed = f" twin {twin.get('verdict', 'crash')}" if twin else ""
    name = f"{result['zoo']:13}{result['name']:32}"
    return f"{name}{said:12} oracle {found:7}{result['wall']:6.1f} s{fixed}{note} {detail[:150]}"


if __name__ == "__main__":
    sys.exit(main())
