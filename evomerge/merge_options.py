"""The options of `evomerge merge`, by the names that mergekit-yaml and mergekit-multi (0.1.5) give them."""

from __future__ import annotations

import argparse
from typing import Any

from evomerge.arguments import Switch, whole_number
from evomerge.checkpoints.write import parse_size
from evomerge.errors import Where

_HIDDEN = {"help": argparse.SUPPRESS}


def _shard_bytes(text: str) -> int:
    return parse_size(text, Where("--out-shard-size"))


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "overwrite": (("--overwrite",), {"action": "store_true", "help": "replace what is there"}),
    "cuda": (("--cuda", "--gpu-rich"), {"action": Switch, "help": "the same as --device cuda"}),
    "threads": (
        ("-j", "--num-threads"),
        {"type": whole_number, "metavar": "N", "help": "processor threads to compute with"},
    ),
    "random_seed": (
        ("--random-seed",),
        {"dest": "seed", "type": whole_number, "metavar": "N", "help": "of random masks, in place of the recipe's"},
    ),
    "shard_bytes": (
        ("--out-shard-size",),
        {"type": _shard_bytes, "default": "5GB", "metavar": "SIZE", "help": "largest weights file (default: 5GB)"},
    ),
    "out_path": (("--out-path",), {"metavar": "DIR", "help": "the same as OUT_DIR"}),
    "intermediate": (
        ("-I", "--intermediate-dir"),
        {"metavar": "DIR", "help": "write the named documents' outputs there, too"},
    ),
    "truncate_embeddings": (
        ("--unsafe-truncate-embeddings",),
        {"action": Switch, "help": "merge embeddings of different size over the rows that all models have"},
    ),
    "mix_types": (
        ("--allow-crimes",),
        {"action": Switch, "help": "merge models of different types whose tensors have the same names and shapes"},
    ),
    "copy_tokenizer": (
        ("--copy-tokenizer",),
        {"action": Switch, "default": True, "help": "whether to write tokenizer files (default: yes)"},
    ),
    "model_card": (
        ("--write-model-card",),
        {"action": Switch, "default": True, "help": "whether to write README.md (default: yes)"},
    ),
    "push_to_hub": (
        ("--push-to-hub",),
        {"metavar": "OWNER/NAME", "help": "also upload it, to a new private repository of the hub"},
    ),
    "public": (("--public",), {"action": "store_true", "help": "of --push-to-hub: anybody may see it"}),
    "hub_cache": (("--transformers-cache",), {"metavar": "DIR", "help": "where models from the hub are kept"}),
    "quiet": (("--quiet",), {"action": Switch, "help": "show no progress"}),
    # What these say makes no difference here: tensors are streamed from and to safetensors, adapters are merged while
    # they are read, no code of a checkpoint is run, and one device computes.
    "without_effect": (
        (
            "-v", "--async-write", "--clone-tensors", "--lazy", "--lazy-unpickle", "--low-cpu-memory", "--multi-gpu",
            "--read-to-gpu", "--safe-serialization", "--trust-remote-code",
        ),
        {"action": Switch, **_HIDDEN},
    ),
    "values_without_effect": (
        ("--lora-merge-cache", "--lora-merge-dtype", "--write-threads"),
        {"metavar": "X", **_HIDDEN},
    ),
}  # fmt: skip
"""Option name -> (flags, argparse's settings), as in `options.OPTIONS`."""
