"""Text of model files for tests of the command: a head with loss and data, and models to put below it."""

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")

def sample_batch():
    return torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])

def train_dataset():
    return TensorDataset(torch.randn(60, 4), torch.randint(3, (60,)))

training = {"epochs": 1, "batch_size": 20}
"""
CLEAN_MODEL = "def make_model(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
MIXING_MODEL = (
    "def make_model(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))\n"
)
