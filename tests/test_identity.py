"""Digests of models, losses and graphs: the same in another process, and others for other code."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

from test_certificate import Net, batch, loss_fn, smoothed
from torch.nn import functional as F

from dpcheck.identity import code_of, graph_of, model_of


def test_digests_are_the_same_in_another_process_and_with_another_hash_seed(tmp_path) -> None:
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "import test_certificate as t\n"
        "from dpcheck.identity import *\n"
        "print(json.dumps([model_of(t.Net()), code_of(t.loss_fn), graph_of(t.Net(), t.loss_fn, t.batch(3))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    here = [model_of(Net()), code_of(loss_fn), graph_of(Net(), loss_fn, batch(6))]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_a_copy_is_the_same_and_comments_do_not_count() -> None:
    assert model_of(copy.deepcopy(Net())) == model_of(Net())

    def spaced(model, batch):
        x, y = batch

        # Another layout.
        return F.cross_entropy(model(x), y, reduction="none")

    assert code_of(spaced) == code_of(loss_fn)
    assert code_of(smoothed) != code_of(loss_fn)
    for a, b in ((1, 2), ("x", "y")):
        assert code_of(lambda a=a: a) != code_of(lambda a=b: a)
        assert code_of((lambda v: lambda: v)(a)) != code_of((lambda v: lambda: v)(b))
