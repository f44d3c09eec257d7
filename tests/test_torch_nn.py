"""Every layer of torch.nn that has parameters, over its options; a layer or an option that has no case fails.

The whole space, which also writes the table in LAYERS.md (about ten minutes):  pytest -m long tests/test_torch_nn.py
"""

import ast
import inspect
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn

from dpcheck.layers import LAYERS
from dpcheck.testing import assert_sampler_correct, layers
from dpcheck.verification import TOLERANCE

TABLE = Path(__file__).resolve().parents[1] / "LAYERS.md"
DRAWN, VERIFIED, SLOW = 40, 40, 15

# What holds other modules or parameters, or is a base of the classes that are layers.
NO_LAYERS = {
    "Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "DataParallel",
    "RNNBase", "RNNCellBase",
}  # fmt: skip
# Enough to make any layer that has no parameters.
ARGUMENTS = [(), (2,), (1, 2), (0.5, 2.0), (0, (1, 1)), ((2, 2), 1), (2, None, (2, 2))]

_TABLES = "refused, or has cases of its own: "
EXEMPT = {
    "device": "no other here", "dtype": "each case in all of them", "affine": "no parameters otherwise",
    "elementwise_affine": "no parameters otherwise", "momentum": "of statistics of the batch",
    "track_running_stats": "of statistics of the batch, DP301", "process_group": "of statistics of the batch",
    "max_norm": _TABLES + "DP302", "norm_type": _TABLES + "DP302", "scale_grad_by_freq": _TABLES + "DP104",
    "_weight": "a table like any other", "_freeze": "no gradient", "reduction": "a loss for each sample",
    "custom_encoder": "a module like any other", "custom_decoder": "a module like any other",
    "name": "of the parameter", "out_features": "several losses for each sample", "options": "a size in memory",
    "mode": "which class it is",
}  # fmt: skip
EXEMPT_OF = {
    "EmbeddingBag": {"sparse": "DP501", "include_last_offset": "test_sites_bags"},
    **{f"ConvTranspose{n}d": {"padding_mode": "zeros is the only one"} for n in (1, 2, 3)},
    # After the first call they are the layers of the other names, with those options.
    **{name: dict.fromkeys(("stride", "padding", "output_padding", "dilation", "groups", "padding_mode"), "as Conv")
       for name in LAYERS if name.startswith("LazyConv")},
}  # fmt: skip


def examples(count):
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def classes():
    members = inspect.getmembers(nn, inspect.isclass)
    return {name: kind for name, kind in members if issubclass(kind, nn.Module)}


def made(name):
    """The object in torch.nn."""
    found = nn
    for part in name.split("."):
        found = getattr(found, part)
    return found


def options_of(name):
    """The options of a layer's constructor that cases have to cover."""
    function = made(name)
    signature = inspect.signature(function)
    if name in ("RNN", "LSTM", "GRU"):
        signature = inspect.signature(nn.RNNBase)
    exempt = EXEMPT | EXEMPT_OF.get(name, {})
    if name in ("RNN", "GRU"):
        exempt = exempt | {"proj_size": "of LSTM alone"}
    found = [option for option in signature.parameters if option not in exempt and option not in ("module", "mode")]
    return signature, found + (["nonlinearity"] if name == "RNN" else []) + (["mode"] if "Bag" in name else [])


def values_in(source, name, signature):
    """What one case gives for each option of the layer."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"nn.{name}":
            names = [option for option in signature.parameters if option != "mode" or "Bag" in name]
            given = dict(zip(names, map(ast.unparse, call.args), strict=False))
            yield given | {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_layer_has_cases_or_no_parameters():
    for name, kind in classes().items():
        if name in LAYERS or name in NO_LAYERS:
            continue
        for arguments in ARGUMENTS:
            try:
                layer = kind(*arguments)
            except (TypeError, ValueError):
                continue
            assert not list(layer.parameters()), f"nn.{name} has parameters and no strategy in dpcheck/layers.py"
            break
        else:
            pytest.fail(f"nn.{name} could not be made: give it a strategy in dpcheck/layers.py, or arguments here")


def test_every_parametrization_has_cases():
    module = nn.utils.parametrizations
    public = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    assert {f"utils.parametrizations.{n}" for n in public if not n.startswith("_")} <= LAYERS.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_every_option_is_drawn(name):
    signature, options = options_of(name)
    seen = {option: set() for option in options}

    @examples(DRAWN)
    @given(layers(name))
    def draw(case):
        for values in values_in(case.model, name, signature):
            for option in options:
                seen[option].add(values.get(option, "the default"))

    draw()
    assert not {option: values for option, values in seen.items() if len(values) < 2}


@pytest.mark.parametrize("name", LAYERS)
def test_one_case_of_every_layer(name):
    # In float64, and in its own dtype.
    @examples(1)
    @given(layers(name, dtype="torch.float32"))
    def verified(case):
        proof = assert_sampler_correct(case)
        assert all(p.error_own_dtype is not None for p in proof.parameters)

    verified()


def row(name, methods, error):
    """A line of the table; the error up to the next power of ten."""
    bound = f"1e{math.ceil(math.log10(error))}" if error else "0"
    how = ", ".join(f"{method} {count}" for method, count in sorted(methods.items()))
    return f"| {name} | {', '.join(options_of(name)[1])} | {sum(methods.values())} | {how} | {bound} |"


HEAD = """# Layers of torch.nn

Written by `pytest -m long tests/test_torch_nn.py`, which finds the layers by walking `torch.nn` and draws cases over
the options that are named. Every case is compared with each sample alone and with `vmap(grad)`, in float64: per-sample
gradients, norms and clipped sum. The error is the largest of them, relative to the largest entry of what is compared,
up to the next power of ten. *graph* are the samplers; *vmap* and *single* evaluate every sample alone.

Refused instead: batch norm in training mode (DP101), `max_norm` (DP302), `scale_grad_by_freq` (DP104), instance norm
that tracks statistics (DP301), bags cut at offsets that are data (DP111). Sparse gradients of tables are computed one
sample at a time, and DP501 asks for dense ones. A layer without trained parameters needs no sampler.

| layer | options | cases | method | error |
|---|---|---|---|---|
"""


def compared(name):
    """Methods with their numbers of cases, and the largest error."""
    methods, errors = Counter(), [0.0]

    @examples(SLOW if "Transformer" in name else VERIFIED)
    @given(layers(name))
    def verified(case):
        proof = assert_sampler_correct(case)
        methods[proof.method] += 1
        errors.extend(max(p.error_single, p.error_vmap or 0.0) for p in proof.parameters)
        errors.append(max(proof.error_norms, proof.error_clipped) * TOLERANCE[proof.dtype])

    verified()
    return methods, max(errors)


@pytest.mark.long
def test_the_whole_option_space():
    rows = [row(name, *compared(name)) for name in LAYERS]
    TABLE.write_text(HEAD + "\n".join(rows) + "\n")


def test_the_table_is_of_these_layers_and_options():
    text = TABLE.read_text()
    assert text.startswith(HEAD)
    lines = text.removeprefix(HEAD).splitlines()
    assert [line.split(" | ")[:2] for line in lines] == [
        row(name, Counter(graph=1), 0.0).split(" | ")[:2] for name in LAYERS
    ]
