"""Small model files in the styles in which people write models; every one mixes samples, and can be fixed in source."""

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
"""
IMAGES = "torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])"
ROWS = "torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])"
IDS = "torch.randint(0, 9, (6, 5)), torch.tensor([0, 1, 2, 0, 1, 2])"


def tail(batch: str = IMAGES) -> str:
    """The loss and the batch that every file has."""
    return f"""

def loss_fn(model, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")


def sample_batch():
    return {batch}
"""


STYLES = {
    "sequential": HEAD + '''

model = nn.Sequential(
    nn.Conv2d(3, 16, 3),
    nn.BatchNorm2d(16),  # as everybody does
    nn.ReLU(inplace=True),
    nn.Flatten(), nn.Linear(16 * 36, 3),
)
''' + tail(),
    "keywords over several lines": HEAD + '''

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(
            num_features=8,  # the width
            eps=1e-3,
            # slower than usual
            momentum=0.01,
            affine=(False),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))
''' + tail(),
    "helper with several widths": HEAD + '''

def conv_bn(inside, outside, momentum=0.1):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, bias=False), nn.BatchNorm2d(outside, 1e-5, momentum), nn.ReLU())


def make_model():
    return nn.Sequential(conv_bn(3, 12), conv_bn(12, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
''' + tail(),
    "loop and attribute": HEAD + '''

class Mlp(nn.Module):
    widths = [4, 32, 48]

    def __init__(self):
        super().__init__()
        layers = []
        for i in range(2):
            layers += [nn.Linear(self.widths[i], self.widths[i + 1]), nn.BatchNorm1d(self.widths[i + 1]), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Linear(48, 3))

    def forward(self, x):
        return self.body(x)
''' + tail(ROWS),
    "comprehension": HEAD + '''

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(2)])
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        for norm in self.norms:
            x = x + norm(x)
        return self.head(x.mean((2, 3)))
''' + tail(),
    "aliased class": '''\
import torch
from torch.nn import BatchNorm2d as BN, Conv2d, Flatten, Linear, Sequential

model = Sequential(Conv2d(3, 8, 3), BN(8), Flatten(), Linear(288, 3))
''' + tail(),
    "aliased module": '''\
"""A file with a docstring, and no name for torch.nn but this one."""
import torch
import torch.nn as tnn


def create_model():
    import torch.nn as layers
    return tnn.Sequential(tnn.Conv2d(3, 8, 3), layers.BatchNorm2d(8), tnn.Flatten(), tnn.Linear(288, 3))
''' + tail(),
    "full path": '''\
import torch

net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 3)
)
''' + tail(),
    "default argument": HEAD + '''

class Block(nn.Module):
    def __init__(self, inside, outside, norm_layer=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inside, outside, 3), norm_layer(outside)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


def make_model():
    return nn.Sequential(Block(3, 8), Block(8, 16), nn.Flatten(), nn.Linear(16 * 16, 3))
''' + tail(),
    "norm_layer is None": HEAD + '''

class Block(nn.Module):
    def __init__(self, inside, outside, norm_layer=None):
        super().__init__()
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        self.conv, self.norm = nn.Conv2d(inside, outside, 3), norm_layer(outside)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.constant_(m.weight, 1)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Unused(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.norm = norm(3)


def make_model():
    return nn.Sequential(Block(3, 8), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "partial": "from functools import partial\n\n" + HEAD + '''
norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "configuration": HEAD + '''
NORMS = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d, "none": nn.Identity}
config = {"norm": "batch", "width": 8}


def build_model():
    norm = NORMS[config["norm"]](config["width"])
    return nn.Sequential(nn.Conv2d(3, config["width"], 3), norm, nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "unpacked options": HEAD + '''
options = {"eps": 1e-3, "momentum": 0.03}


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "subclass": HEAD + '''

class NormAct(nn.BatchNorm2d):
    """Batch norm with its activation."""

    def __init__(self, width):
        super().__init__(width, eps=1e-3)

    def forward(self, x):
        return F.relu(super().forward(x))


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "function": HEAD + '''

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        x = F.batch_norm(self.conv(x), None, None, self.weight, self.bias, True, 0.1, 1e-3)
        x = F.batch_norm(
            x,  # again
            running_mean=None,
            running_var=None,
            training=True,
        )
        return self.head(x.mean((2, 3)))
''' + tail(),
    "computed width": HEAD + '''

def make_divisible(width):
    return (int(width) + 7) // 8 * 8


class Net(nn.Module):
    def __init__(self, scale=1.3):
        super().__init__()
        self.conv = nn.Conv2d(3, make_divisible(16 * scale), 3)
        self.norm = nn.BatchNorm2d(make_divisible(16 * scale))
        self.head = nn.Linear(make_divisible(16 * scale), 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))
''' + tail(),
    "lambda": HEAD + '''
norm = lambda width: nn.BatchNorm2d(width, affine=True, track_running_stats=False)
model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "lazy": HEAD + '''

def make_model():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(eps=1e-3), nn.Flatten(), nn.Linear(8 * 36, 3))
    model(torch.zeros(1, 3, 8, 8))
    return model
''' + tail(),
    "copied layers": "import copy\n" + HEAD + '''
layer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())


def make_model():
    return nn.Sequential(*[copy.deepcopy(layer) for _ in range(2)], nn.Flatten(), nn.Linear(3 * 64, 3))
''' + tail(),
    "embedding": HEAD + '''

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 8, scale_grad_by_freq=True, max_norm=1.0)
        self.other = nn.Embedding(9, 8, None, None, 2.0, False, True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head((self.table(ids) + self.other(ids)).mean(1))
''' + tail(IDS),
    "unused layer": HEAD + '''
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(192, 8), nn.Linear(8, 3)
        self.spare = nn.Linear(8,
                               4)  # for later
        self.many = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
    def forward(self, x):
        return self.head(self.body(x.flatten(1)))
''' + tail(),
    "instance norm": HEAD + '''
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True), nn.Flatten(), nn.Linear(8 * 36, 3)
)
''' + tail(),
    "batch norm of its own": HEAD + '''

class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Norm(8), nn.Conv2d(8, 32, 3), Norm(32), nn.Flatten(), nn.Linear(512, 3))
''' + tail(),
    "handed to a library": "from torch.nn.utils import skip_init\n" + HEAD + '''

def make_model():
    norm = skip_init(nn.BatchNorm2d, 8)
    norm.reset_parameters()
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
    "name in a string, in a function": HEAD + '''
kind = "BatchNorm2d"


def make_model():
    norm = getattr(nn, kind)(8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 36, 3)
    )
''' + tail(),
    "name in a string, at the top": HEAD + '''
model = nn.Sequential(nn.Conv2d(3, 8, 3), getattr(nn, "BatchNorm2d")(8), nn.Flatten(), nn.Linear(8 * 36, 3))
''' + tail(),
}  # fmt: skip
