"""Sample inputs that a file does not make: ``--input``, what the model says of its inputs, and a guessed loss."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcheck.errors import DpcheckError

BATCH = 6
# For letters, in the order in which they come; all differ from the batch size.
_LENGTHS = (12, 10, 14, 9, 15, 11)
_DIMS = re.compile(r"(B|[1-9]\d*)(x([AC-Z]|[1-9]\d*))*")
_TYPE = re.compile(r"(?P<name>[a-z]+\d*)(<(?P<limit>[1-9]\d*))?")
_FORM = "--input x:Bx3x32x32, or ids:BxT:int64<30522; B is the batch, other letters are any length"


@dataclass(frozen=True)
class Sample:
    """Inputs of a model.

    Attributes:
        tensors: by the name of the argument; positions are named ``0``, ``1``, ...
        origin: where they come from, in words.
        guessed: whether nobody has said that these are the inputs.
    """

    tensors: dict[str, Tensor]
    origin: str
    guessed: bool = True

    @property
    def batch(self) -> Any:
        """For a loss of the user's: the tensor, or a tuple of them in their order."""
        values = tuple(self.tensors.values())
        return values[0] if len(values) == 1 else values


def of_options(texts: Sequence[str]) -> Sample:
    """Random tensors as ``--input`` describes them: normal numbers, or integers from 0 to below the limit (2).

    Raises:
        DpcheckError: for a text that describes none, a name that comes twice, batch sizes that differ.
    """
    lengths: dict[str, int] = {"B": BATCH}
    found: dict[str, Tensor] = {}
    for text in texts:
        first, _, rest = text.partition(":")
        name = "" if _DIMS.fullmatch(first) else first
        dims, _, kind = (text if not name else rest).partition(":")
        if not _DIMS.fullmatch(dims) or (name and not name.isidentifier()):
            raise DpcheckError(f"--input {text} describes no tensor", "--input", f"write {_FORM}")
        for letter in re.findall("[A-Z]", dims):
            if letter not in lengths:
                lengths[letter] = _LENGTHS[(len(lengths) - 1) % len(_LENGTHS)]
        name = name or str(len(found))
        if name in found:
            raise DpcheckError(f"--input names {name!r} twice", "--input", "describe every input once")
        shape = [lengths[d] if d.isalpha() else int(d) for d in dims.split("x")]
        found[name] = _random(shape, kind, text)
    if len({t.shape[0] for t in found.values()}) > 1:
        raise DpcheckError("the inputs have batches of different sizes", "--input", "write B for all of them")
    return Sample(found, "--input " + " ".join(texts), guessed=False)


def like(name: str) -> str:
    """An example of what ``--input`` says of an argument with such a name."""
    return {"input_ids": "BxT:int64<100", "input_values": "Bx4000", "pixel_values": "Bx3x64x64"}.get(name, "Bx3x32x32")


def _random(shape: list[int], kind: str, text: str) -> Tensor:
    form = _TYPE.fullmatch(kind) if kind else None
    dtype = getattr(torch, form["name"], None) if form else torch.float32 if not kind else None
    if not isinstance(dtype, torch.dtype):
        raise DpcheckError(f"--input {text}: there is no type {kind!r}", "--input", f"write {_FORM}")
    limited = form is not None and form["limit"] is not None
    if dtype.is_floating_point or dtype.is_complex:
        if limited:
            raise DpcheckError(f"--input {text}: only integers have a limit", "--input", f"write {_FORM}")
        return torch.randn(shape, dtype=torch.float32 if dtype.itemsize < 4 else dtype).to(dtype)
    limit = int(form["limit"]) if form is not None and limited else 2
    return torch.randint(0, limit, shape).to(dtype)


def of_model(model: nn.Module) -> Sample | None:
    """What the model says of its inputs: Lightning's ``example_input_array``, or jaxtyping's annotations."""
    example = getattr(model, "example_input_array", None)
    if example is not None:
        tensors = _by_name(example)
        if tensors:
            return Sample(tensors, "the model's example_input_array", guessed=False)
    annotated = _annotated(model)
    return None if annotated is None else Sample(annotated, "the annotations of forward")


def _by_name(example: Any) -> dict[str, Tensor]:
    if isinstance(example, Mapping):
        items: Iterable[tuple[Any, Any]] = example.items()
    else:
        items = enumerate(example if isinstance(example, tuple | list) else [example])
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def _annotated(model: nn.Module) -> dict[str, Tensor] | None:
    """Tensors of the annotated shapes; ``None`` unless every argument without a default has one that can be made."""
    lengths: dict[str, int] = {}
    found = {}
    try:
        parameters = inspect.signature(model.forward, eval_str=True).parameters
    except (NameError, TypeError, ValueError, SyntaxError):
        return None
    for name, parameter in parameters.items():
        text = getattr(parameter.annotation, "dim_str", None)
        if not isinstance(text, str):
            if parameter.default is parameter.empty:
                return None
            continue
        shape = []
        for i, dim in enumerate(text.split()):
            word = dim.partition("=")[2] or dim
            if not (word.isdigit() or word.isidentifier()):
                return None
            if i == 0:
                shape.append(BATCH)
            else:
                free = _LENGTHS[len(lengths) % len(_LENGTHS)]
                shape.append(int(word) if word.isdigit() else lengths.setdefault(word, free))
        kinds = [str(kind) for kind in getattr(parameter.annotation, "dtypes", ())]
        whole = bool(kinds) and all("int" in kind for kind in kinds)
        found[name] = torch.randint(0, 2, shape) if whole else torch.randn(shape)
    return found or None


class GuessedLoss:
    """The mean square of what the model returns for each sample, over every output that has samples on axis 0."""

    words = "the mean square of each sample's outputs"
    mend = "say what the inputs are, --input NAME:SHAPE once for each, or write loss_fn(model, batch) in a file"

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Losses [B]."""
        size = next(iter(batch.values())).shape[0]
        positions = [value for name, value in batch.items() if name.isdigit()]
        out = model(*positions, **{name: value for name, value in batch.items() if not name.isdigit()})
        items = out.values() if isinstance(out, Mapping) else out if isinstance(out, tuple | list) else [out]
        outputs = [
            t for t in items if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and t.shape[0] == size
        ]
        if not outputs:
            raise DpcheckError(
                "no output of the model has samples on axis 0, so that no loss can be guessed",
                next="write loss_fn(model, batch) in a file",
            )
        losses = [t.reshape(size, -1).square().mean(1) for t in outputs]
        return torch.stack(losses).sum(0)
