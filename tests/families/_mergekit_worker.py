"""Merges with mergekit: reads {"recipe": YAML, "out": folder} a line, answers {"error": null, or why it fails} a line.

Run by a Python that has mergekit.
"""

from __future__ import annotations

import json
import logging
import sys

import torch
import yaml


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked, error = json.loads(line), None
        try:
            config = MergeConfiguration.model_validate(yaml.safe_load(asked["recipe"]))
            run_merge(config, asked["out"], MergeOptions(copy_tokenizer=False, quiet=True, device="cpu"))
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}".strip().splitlines()[0][:200]
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
