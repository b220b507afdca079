"""A digest of all tensors of a model: equal digests mean equal bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor


def tensor_record(name: str, tensor: Tensor) -> str:
    """One tensor's line in a digest: name, dtype, shape, sha256 of its bytes in row-major order."""
    data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    shape = ",".join(map(str, tensor.shape))
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} [{shape}] {hashlib.sha256(data.data).hexdigest()}"


def combined(records: Iterable[str]) -> str:
    """sha256 (hex) of the lines, sorted."""
    return hashlib.sha256("\n".join(sorted(records)).encode()).hexdigest()


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 (hex) over the tensors sorted by name. Some are hashed side by side, and no more are asked for."""
    workers = max(1, torch.get_num_threads())
    rest, records = iter(tensors), list[str]()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while some := list(islice(rest, workers)):
            records += pool.map(lambda pair: tensor_record(*pair), some)
    return combined(records)
