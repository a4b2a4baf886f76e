"""Hashes of a model's weights: of all of them, and of a sample, which is quicker."""

import hashlib

import torch
from torch import nn

_SAMPLED = 64


def weights_hash(model: nn.Module) -> str:
    """SHA-256 hex digest of a sample of a model's parameters, equal on every device.

    Of each tensor it covers the name, the shape, the first 64 values, the last 64, and
    64 values at equal distances.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLED)
        sample = [flat[:_SAMPLED], flat[-_SAMPLED:], flat[::stride][:_SAMPLED]]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(torch.cat(sample).cpu().double().numpy().tobytes())
    return digest.hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 hex digest of all that a checkpoint of a model holds, byte by byte.

    About a second for a billion bytes; `weights_hash` is the quicker sample.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
