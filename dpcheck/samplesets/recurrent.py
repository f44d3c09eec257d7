"""Transfer rules of the recurrent layers that capture puts in (:mod:`dpcheck.recurrent`)."""

from __future__ import annotations

from typing import Any

from dpcheck.samplesets.lattice import Samples, moved, reduced
from dpcheck.samplesets.op import Op, transfer

# Of each op, the arguments that have no rows.
_WEIGHTS = {
    "dpcheck.lstm": (1,), "dpcheck.lstm_backward": (2,), "dpcheck.gru": (1, 2), "dpcheck.gru_backward": (1,),
    "dpcheck.rnn": (1,), "dpcheck.rnn_backward": (1,),
}  # fmt: skip


@transfer(*_WEIGHTS)
def recurrence(op: Op) -> Any:
    """Row b of the batch, which is the last axis but one, depends on everything of row b, and on all of the weights.

    Time is not followed: an early state is said to depend on the later inputs too.
    """
    at = _WEIGHTS[op.packet]
    values = [(i, value) for i, value in enumerate(op.args) if isinstance(value, Samples)]
    weights = [moved(reduced(value, None), lambda t: t.reshape(1, 1)) for i, value in values if i in at]
    rows = [_rows(value) for i, value in values if i not in at]
    every = op.join(*weights, *rows, shape=rows[0].shape)
    return op.each(lambda out: moved(every, lambda t: t.expand(out.shape)))


def _rows(value: Samples) -> Samples:
    """What each row depends on, [B, 1]: of a sequence [T, B, ...], or of a state [B, ...]."""
    last = reduced(value, [-1])
    return reduced(last, [0], keepdim=False) if len(value.shape) == 3 else last
