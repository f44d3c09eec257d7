"""A CNN with BatchNorm on scikit-learn's handwritten digits: 1,797 images of 8x8.

dpcheck examples/digits_cnn.py                                 # findings, exit 1
dpcheck examples/digits_cnn.py --fix --unsafe-fixes --train    # fix, verify, train privately
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

training = {"epsilon": 8.0, "delta": 1e-5, "epochs": 40, "batch_size": 1024, "max_grad_norm": 1.0}


class DigitsCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def make_model() -> nn.Module:
    return DigitsCNN()


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="none")


def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def split() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, random_state=0, stratify=labels)
    x_train, x_test = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) for x in parts[:2])
    y_train, y_test = (torch.tensor(y) for y in parts[2:])
    return TensorDataset(x_train, y_train), TensorDataset(x_test, y_test)


def sample_batch() -> tuple[Tensor, Tensor]:
    images, labels = split()[0][:8]
    return images, labels


def train_dataset() -> TensorDataset:
    return split()[0]


def evaluate(model: nn.Module) -> dict[str, float]:
    images, labels = split()[1].tensors
    return {"test accuracy": (model(images).argmax(1) == labels).float().mean().item()}
