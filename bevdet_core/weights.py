"""Reading weights that others have written, without ever executing a pickle."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import CheckpointError

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts put the state dict


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` file or of a PyTorch file (`.pth`, `.pt`, `.bin`), on the CPU.

    A dict under "state_dict" or "model" is unwrapped; what is no tensor is left out.

    Raises:
        CheckpointError: the file is missing, damaged, holds no state dict, or more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a complete safetensors file: {error}") from error
    try:
        # Training scripts store their arguments beside the weights; a namespace is nothing but its values.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: damaged, or it holds Python objects beside the weights, which are never executed here: {error}"
        ) from error
    except Exception as error:  # the reader takes the file at its word, and fails wherever that leads
        raise CheckpointError(f"{path}: cannot be read as a PyTorch file: {error}") from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    weights = {n: t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not weights:
        raise CheckpointError(f"{path}: holds no state dict (a dict of tensors)")
    return weights
