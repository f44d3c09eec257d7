"""Clauses for messages: how an op brings samples together."""

from __future__ import annotations

from torch import fx

from dpcheck.samplesets.interpreter import Step

_CLAUSES = (
    (("embedding_dense_backward", "_embedding_bag_backward"),
     "scales the gradient by how often an index occurs in the batch"),
    (("_embedding_bag",), "is cut at offsets that are data, or holds indices of several samples"),
    (("batch_norm",), "normalises with statistics of the whole batch"),
    (("sum", "mean", "var", "std", "amax", "amin", "max", "min", "prod", "norm", "logsumexp", "any", "all", "median"),
     "reduces over the sample axis"),
    (("softmax",), "normalises over the sample axis"),
    (("cumsum", "cumprod", "cummax", "cummin", "sort", "argsort", "topk"), "runs along the sample axis"),
    (("mm", "bmm", "addmm", "baddbmm", "dot", "matmul", "attention"), "multiplies rows of different samples"),
    (("flip", "roll", "index", "gather", "select", "slice", "permute", "view", "reshape"),
     "moves samples across the sample axis"),
)  # fmt: skip


def reason_for(node: fx.Node, step: Step) -> str:
    """One clause, such as ``reduces over the sample axis``."""
    if not step.ruled:
        return "has no transfer rule, so nothing is proven about it"
    if not step.fresh and "getitem" not in str(node.target):
        return "hands each loss the values of another sample"
    name = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
    for words, clause in _CLAUSES:
        if any(word in name.split("_") or name == word or (len(word) > 5 and word in name) for word in words):
            return clause
    return "combines values of different samples"
