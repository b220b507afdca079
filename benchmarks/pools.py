"""Does a search over a pool drop the models that do not help?

    python benchmarks/pools.py SPECIALISTS --work DIR [--seeds 3] [--trials 50]

SPECIALISTS is a folder with a `base`, fine-tunes of it, and their texts under `items/`. Two useless models join the
pool: `noise`, the base plus Gaussian noise of the size of a fine-tune's delta, and `shuffled`, a fine-tune's delta with
the elements of each tensor in another order. Searches with the gene `include` and without have the same trials and
seeds. Printed are the winner's gain over the base on the holdout items, which models it holds, and the useless
models' share of all weight.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

import evomerge

DOMAINS = ("french", "gsm8k", "shakespeare")
USELESS = ("noise", "shuffled")
ITEMS = 16


def useless(source: Path, models: Path) -> None:
    """Writes the two useless models beside the others."""
    numbers = torch.Generator().manual_seed(0)
    base = load_file(models / "base" / "model.safetensors")
    tuned = load_file(models / source.name / "model.safetensors")
    for name in USELESS:
        shutil.copytree(models / "base", models / name)
        weights = {}
        for key, tensor in base.items():
            delta = tuned[key] - tensor
            if name == "noise":
                delta = torch.randn(delta.shape, generator=numbers) * delta.square().mean().sqrt()
            else:
                delta = delta.flatten()[torch.randperm(delta.numel(), generator=numbers)].view(delta.shape)
            weights[key] = (tensor + delta).contiguous()
        save_file(weights, models / name / "model.safetensors", {"format": "pt"})


def prepare(specialists: Path, work: Path, trials: int) -> Path:
    """Writes the pool, the tasks, and both files; returns the space file."""
    models, tasks = work / "models", work / "tasks"
    tasks.mkdir(parents=True)
    for name in ("base", *DOMAINS):
        shutil.copytree(specialists / name, models / name)
    useless(specialists / DOMAINS[-1], models)
    slices: dict[str, Any] = {}
    for domain in DOMAINS:
        shutil.copy(specialists / "items" / f"{domain}_text.jsonl", tasks / f"{domain}.jsonl")
        task = {
            "task": domain,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": f"{domain}.jsonl"}},
            "test_split": "test",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        }
        (tasks / f"{domain}.yaml").write_text(yaml.safe_dump(task))
        slices[domain] = {"task": domain, "metric": "bits_per_byte", "items": ITEMS}
    (work / "fitness.yaml").write_text(yaml.safe_dump({"include": ["tasks"], "slices": slices, "pruning": False}))
    space = {
        "base": "models/base",
        "sources": {"pool": "models/*"},
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}},
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    (work / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    return work / "space.yaml"


def weights(trial: Any) -> dict[str, float]:
    """What each source weighs in a trial's merge; the sources without a part are not in it."""
    genome = trial.genome
    names = [key[len("weight[") : -1] for key in genome if key.startswith("weight[")]
    return {name: genome[f"weight[{name}]"] for name in names if genome.get(f"include[{name}]", 1.0) >= 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specialists", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=50)
    given = parser.parse_args()
    space = prepare(given.specialists, given.work, given.trials)
    for include in ("true", "false"):
        for seed in range(given.seeds):
            run = given.work / "runs" / f"{include}-{seed}"
            result = evomerge.search(space, run=run, seed=seed, settings=[f"genes.include={include}"])
            base = next(t for t in result.holdout.trials if t.label == "base")
            best = result.winner
            if best is None or not best.genome:
                print(f"include {include}, seed {seed}: no merge won", flush=True)
                continue
            parts = weights(best)
            share = sum(parts.get(name, 0.0) for name in USELESS) / (sum(parts.values()) or 1.0)
            held = ", ".join(f"{name} {weight:.2f}" for name, weight in parts.items())
            gain = (best.objective or 0.0) - (base.objective or 0.0)
            duplicates = sum(t.duplicate_of is not None for t in result.search.trials)
            print(
                f"include {include}, seed {seed}: holdout gain {gain:+.4f}, useless {share:.0%} of the weight "
                f"({held}), trial {best.number} {best.label}, {duplicates} duplicates",
                flush=True,
            )


if __name__ == "__main__":
    main()
