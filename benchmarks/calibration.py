"""What replacing batch norm costs a trained network before any training, with and without calibration.

    python benchmarks/calibration.py [--seeds N]

A convolutional network with batch norm is trained on half of scikit-learn's digits. Its batch norms are then replaced
by every norm that ``dpcheck.fix`` offers: as they are, with weights fitted on 100 of the images that it was trained on
(as if these were public), and with weights fitted on noise (normal, of the images' mean and deviation). The accuracy
on 360 images that it never saw is given, before any further training.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dpcheck

NORMS = ("group", "layer", "instance", "standardised")
COLUMNS = ("batch norm", "as it is", "public images", "noise")


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for inside, out, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in 0 to 1, shuffled, and labels."""
    images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(labels))
    return (images.float() / 16).view(-1, 1, 8, 8)[order], labels[order]


def trained(images: Tensor, labels: Tensor, epochs: int = 8) -> nn.Module:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((copy.deepcopy(model).eval()(images).argmax(1) == labels).float().mean())


def row(seed: int, to: str) -> tuple[float, ...]:
    """Accuracies under the columns."""
    torch.manual_seed(seed)
    images, labels = digits()
    model = trained(images[:900], labels[:900])
    noise = torch.randn(100, 1, 8, 8) * images.std() + images.mean(), labels[:100]
    found = [accuracy(model, images[-360:], labels[-360:])]
    for calibration in (None, (images[:100], labels[:100]), noise):
        batch = images[:8], labels[:8]
        result = dpcheck.fix(model, cross_entropy, batch, unsafe=True, batch_norm_to=to, calibration=calibration)
        found.append(accuracy(result.model, images[-360:], labels[-360:]))
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="accuracy of a trained network after its batch norms are replaced")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':14}" + "".join(f"{name:>16}" for name in COLUMNS))
    for to in NORMS:
        rows = [row(seed, to) for seed in range(options.seeds)]
        print(
            f"{to:14}" + "".join(f"{statistics.mean(column):16.3f}" for column in zip(*rows, strict=True)), flush=True
        )


if __name__ == "__main__":
    main()
