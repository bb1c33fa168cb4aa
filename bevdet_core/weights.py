"""Reading weights that others have written, without ever executing a pickle."""

from __future__ import annotations

import re
import warnings
from argparse import Namespace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import CheckpointError
from .documents import shown

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the state dict


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` file or of a PyTorch file (`.pth`, `.pt`, `.bin`), on the CPU.

    A dict under one of `WRAPPERS` is unwrapped; what is no tensor with a name is left out.

    Raises:
        CheckpointError: the file is missing, damaged, holds no state dict, or more than tensors and plain values.
        OSError: the file may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, not a weights file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a complete safetensors file: {error}") from error
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on files that it refuses anyway, or on how a pickle was written
        try:
            # Training scripts store their arguments beside the weights; a namespace is nothing but its values.
            with torch.serialization.safe_globals([Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the reader takes the file at its word, and fails wherever that leads
            # Without its words: they advise to execute what is in the file.
            raise CheckpointError(f"{path}: {_problem(str(error))}") from None
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    weights = {}
    if isinstance(content, dict):
        weights = {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if not weights:
        raise CheckpointError(
            f"{path}: holds no state dict (a dict of tensors), neither bare nor under {', '.join(WRAPPERS)}"
        )
    return weights


def _problem(error: str) -> str:
    """What is wrong with a file that the reader of PyTorch files refuses in these words."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)", error)
    if found is None:
        return "damaged, or no weights: these are read from PyTorch files (.pth, .pt, .bin) and .safetensors files"
    return (
        f"holds Python objects other than weights, such as {shown(found[1])}, which are never executed here (or it is "
        "damaged); what is needed is the state dict alone"
    )
