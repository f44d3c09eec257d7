"""Models of timm and transformers, with random weights; nothing is downloaded."""

from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dpcheck.errors import DpcheckError
from dpcheck.naming import Named
from dpcheck.samples import BATCH, Sample


def build(target: Named) -> tuple[nn.Module, Sample | None]:
    """The model, in training mode, and inputs by what the library says of it.

    Raises:
        DpcheckError: if the library is not installed, knows no such model or option, or cannot build it.
    """
    return _timm(target) if target.kind == "timm" else _transformers(target)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library whose own parts do not fit each other raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise DpcheckError(f"{name} is not installed", next=f"pip install {name}") from error
        raise DpcheckError(
            f"{name} cannot be imported: {type(error).__name__}: {error}",
            next=f"see what `python -c 'import {name}'` says; torchvision, say, must be of the release of this torch",
        ) from error


def _timm(target: Named) -> tuple[nn.Module, Sample | None]:
    timm = _library("timm")
    names = timm.list_models()
    base = target.place.partition(".")[0]
    if base not in names:
        near = difflib.get_close_matches(base, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "python -c 'import timm; print(timm.list_models())'"
        raise DpcheckError(f"timm has no model {target.place!r}", f"timm:{target.place}", hint)
    try:
        model: nn.Module = timm.create_model(target.place, pretrained=False, **target.kwargs)
    except Exception as error:
        raise DpcheckError(
            f"timm could not build it: {type(error).__name__}: {error}",
            f"timm:{target.place}",
            "change what follows the question mark; for inputs of another size: --input Bx3x64x64",
        ) from error
    size = target.kwargs.get("img_size") or (getattr(model, "default_cfg", None) or {}).get("input_size")
    size = (3, size, size) if isinstance(size, int) else size
    return model.train(), None if size is None else Sample({"0": torch.randn(BATCH, *size)}, "timm's input_size")


def _transformers(target: Named) -> tuple[nn.Module, Sample | None]:
    where, folder = f"hf:{target.place}", Path(target.place)
    if not (folder / "config.json").is_file():
        raise DpcheckError(f"{folder} has no config.json", where, "name the folder of one; none is fetched")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = _library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        for key, value in target.kwargs.items():
            if not hasattr(config, key):
                near = difflib.get_close_matches(key, config.to_dict(), n=1)
                hint = f"did you mean {near[0]}?" if near else f"see {folder / 'config.json'}"
                raise DpcheckError(f"the configuration has no {key!r}", where, hint)
            setattr(config, key, value)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        model: nn.Module = transformers.AutoModel.from_config(config) if kind is None else kind(config)
    except DpcheckError:
        raise
    except Exception as error:
        raise DpcheckError(
            f"transformers could not build it: {type(error).__name__}: {error}",
            where,
            "change config.json, or what follows the question mark",
        ) from error
    return model.train(), _inputs(model, config)


def _inputs(model: Any, config: Any) -> Sample | None:
    main = getattr(model, "main_input_name", "input_ids")
    dummy = dict(getattr(model, "dummy_inputs", None) or {})
    if main == "pixel_values":
        size = getattr(config, "image_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        shape = (BATCH, getattr(config, "num_channels", 3), height, width)
        return Sample({main: torch.randn(shape)}, "the configuration's image_size")
    if main not in dummy:
        return None
    limit = getattr(config, "vocab_size", None)
    tensors = {
        name: value % limit if limit and name.endswith("_ids") and not value.is_floating_point() else value
        for name, value in dummy.items()
        if isinstance(value, torch.Tensor)
    }
    return Sample(tensors, "transformers' dummy_inputs")
