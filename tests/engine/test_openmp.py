"""OpenMP's threads end when they are asked to, and torch computes as before with new ones."""

import os

import torch
from dpcheck.engine.openmp import rest


def test_idle_threads_end_and_torch_starts_new_ones():
    count, a = torch.get_num_threads(), torch.ones(600, 600)
    try:
        torch.set_num_threads(3)
        before = a @ a
        running = len(os.listdir("/proc/self/task"))
        rest()
        assert len(os.listdir("/proc/self/task")) <= running - 2
        assert torch.equal(a @ a, before)
        assert len(os.listdir("/proc/self/task")) >= running
    finally:
        torch.set_num_threads(count)
