"""What ``dpcheck FILE --train``, ``dpcheck train`` and ``dpcheck audit`` can be told of a run."""

from __future__ import annotations

import argparse

# As attributes of the options.
SETTINGS = ("epsilon", "delta", "epochs", "batch_size", "max_grad_norm")
OUTCOME = ("lr", "seed", "no_baseline", "save", "report")


def add_settings(
    p: argparse._ActionsContainer, default: str, *, epsilon: str = "target epsilon", delta: str = "of the guarantee"
) -> None:
    """:data:`SETTINGS`: ``default`` says with ``{}`` what holds without them; the others, what the claim is of."""

    def said(text: str, value: str) -> str:
        return f"{text} ({default.format(value)})"

    p.add_argument("--epsilon", type=float, metavar="E", help=said(epsilon, "8"))
    p.add_argument("--delta", type=float, metavar="D", help=said(delta, "1e-5"))
    p.add_argument("--epochs", type=float, metavar="N", help=said("expected passes over the data", "20"))
    p.add_argument("--batch-size", type=int, metavar="N", help=said("expected, of Poisson sampling", "256"))
    p.add_argument("--max-grad-norm", type=float, metavar="C", help=said("clipping norm", "1"))


def add_outcome(p: argparse._ActionsContainer) -> None:
    """:data:`OUTCOME`: how the optimizer and the generators begin, and what is left of the run."""
    p.add_argument("--lr", type=float, metavar="LR", help="learning rate of every group of make_optimizer()")
    p.add_argument("--seed", type=int, metavar="N", help="repeatable, and NOT private")
    p.add_argument("--no-baseline", action="store_true", help="do not also train without privacy to show its cost")
    p.add_argument("--save", metavar="PATH", help="write the trained weights (a state_dict)")
    p.add_argument("--report", metavar="PATH", help="write the statement of the guarantee: .html, .json or .txt")
