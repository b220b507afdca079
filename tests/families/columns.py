"""What is tried of each layout: a column of the table each, with what came of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import evomerge
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest
from tests.families.build import (
    DENSITY,
    PROMPTS,
    SOURCES,
    TASKS,
    WRITTEN,
    recipe,
    stored,
    write_files,
    write_models,
    write_tasks,
    write_tokenizer,
)
from tests.families.layouts import Layout

COLUMNS = ("merge", "search", "slopes", "generation", "parity")
LONGEST = 300
"""Characters of a reason."""

YES, REFUSED, NONE, FUSED, FAILED = "yes", "refused", "-", "fused", "no"


@dataclass
class Found:
    """What came of one column, and why.

    Attributes:
        state: `yes`; `no`; `refused`: evomerge says that it cannot, in one line; `-`: there is nothing to compare with;
            `fused`: mergekit merges tensors as transformers fuses them, and is compared with the merge of models that
            are stored so.
    """

    state: str
    why: str = ""


@dataclass
class Row:
    """What came of one layout."""

    layout: Layout
    found: dict[str, Found] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether all that can be done with the family was done. Slopes may be refused; mergekit may know it not."""
        fine = {"slopes": (YES, REFUSED), "parity": (YES, FUSED, NONE)}
        return all(self.found[column].state in fine.get(column, (YES,)) for column in COLUMNS)

    def reasons(self) -> dict[str, str]:
        return {column: found.why for column, found in self.found.items() if found.why}


class Trial:
    """One layout in a folder of its own, which becomes the current one."""

    def __init__(self, layout: Layout, folder: Path, mergekit: Mergekit | None) -> None:
        self.layout, self.folder, self.mergekit = layout, folder, mergekit
        self._writer: Callable[[Path], Any] = _load

    def run(self) -> Row:
        """Tries every column; one that fails does not keep the others from being tried."""
        row = Row(self.layout)
        with _within(self.folder):
            write_models(self.layout, self.folder)
            write_tasks(self.folder / "tasks", self._base_answers())
            write_files(self.folder)
            for column in COLUMNS:
                found = _tried(getattr(self, column))
                row.found[column] = Found(found.state, found.why.replace(f"{self.folder}/", "")[:LONGEST])
        return row

    def _base_answers(self) -> list[str]:
        """What the base writes, through the class that its configuration names; where transformers' own code of that
        class fails on text alone, through the one that lm-eval takes."""
        base = self.folder / "base"
        try:
            return _answers(_load(base), base)
        except AttributeError:
            self._writer = _scored
            return _answers(self._writer(base), base)

    def merge(self) -> Found:
        """TIES with a gradient over the layers, to disk. transformers finds every parameter in the folder, and nothing
        else."""
        evomerge.merge(self.folder / "ties.yml", self.folder / "merged")
        merged, base, *sources = (set(stored(self.folder / name)) for name in ("merged", "base", *SOURCES))
        assert base <= merged, f"the merge lacks {sorted(base - merged)[:3]} of the base"
        assert merged <= base.union(*sources), f"the merge has {sorted(merged - base)[:3]}, which no model has"
        _load(self.folder / "merged")
        return Found(YES)

    def search(self) -> Found:
        """The base's scores are lm-eval's. Of eight trials the best is exported and merged, and is what was scored:
        bit for bit, and in its scores."""
        base = evomerge.evaluate("base", "fitness.yaml", split="all", device="cpu")
        _check_scores(
            {name: base.slices[name].show(score.value) for name, score in base.scores.items()},
            _lm_eval(self.folder / "base"),
            "the base's {} is {} here, {} in lm-eval",
        )
        result = evomerge.search("space.yaml", run="run", device="cpu")
        merges = [t for t in result.search.trials if t.kind == "search"]
        failed = [t.reason for t in merges if t.state == "failed"]
        assert not failed, f"{len(failed)} of {len(merges)} trials fail: {failed[0]}"
        assert result.winner is not None, "no winner"
        evomerge.export("run", "winner.yml")
        folder = evomerge.merge("winner.yml", self.folder / "winner")
        assert checkpoint_digest(folder) == result.winner.digest, "the merged winner has another digest"
        again = evomerge.evaluate(folder, "fitness.yaml", split="holdout", device="cpu")
        assert again.digest == result.winner.digest, "the winner in memory has another digest"
        _check_scores(
            {name: score.value for name, score in again.scores.items()},
            dict(result.winner.scores),
            "the merged winner's {} is {}, and was {} in the search",
        )
        _load(folder)
        return Found(YES)

    def slopes(self) -> Found:
        """Six steps along the gradient, or a refusal."""
        try:
            result = evomerge.search("slopes.yaml", run="slopes", device="cpu")
        except InputError as error:
            refused = not (self.folder / "runs" / "slopes").exists()  # before anything was scored
            return Found(REFUSED if refused else FAILED, str(error))
        steps = [t for t in result.search.trials if t.slopes]
        failed = [t.reason for t in result.search.trials if t.state == "failed"]
        assert not failed, f"{len(failed)} steps fail: {failed[0]}"
        assert len(steps) >= 6, f"{len(steps)} steps have slopes"
        values = [abs(v) for t in steps for s in t.slopes.values() for v in s["slopes"]]
        assert max(values) > 0, "all slopes are zero"
        return Found(YES)

    def generation(self) -> Found:
        """What was written to disk writes four tokens."""
        for name in ("merged", "winner"):
            if (self.folder / name).is_dir():
                _answers(self._writer(self.folder / name), self.folder / name)
            else:
                raise AssertionError(f"nothing was {name}")
        return Found(YES)

    def parity(self) -> Found:
        """mergekit's tensors of the same recipe."""
        if self.mergekit is None:
            return Found(NONE, "mergekit is not here")
        theirs = self.mergekit.merge(recipe(self.folder), self.folder / "mergekit")
        if theirs is not None:
            return Found(NONE, f"mergekit fails: {theirs}")
        expected, folder, state = stored(self.folder / "mergekit"), self.folder, YES
        found = stored(folder / "merged")
        if not {_same_name(name, found) for name in expected} <= set(found):
            folder, state = self._native(), FUSED
            found = stored(evomerge.merge(folder / "ties.yml", folder / "merged"))
        expected = {_same_name(name, found): tensor for name, tensor in expected.items()}
        odd = sorted(set(expected) - set(found))
        assert not odd, f"mergekit has other tensors: {', '.join(odd[:3])}"
        if lacking := sorted(set(found) - set(expected)):
            return Found(NONE, f"mergekit leaves out {len(lacking)} of {len(found)} tensors, such as {lacking[0]}")
        models = [stored(folder / name) for name in ("base", *SOURCES)]
        far = [
            name for name in expected if not _equal(found[name], expected[name], [m[name] for m in models if name in m])
        ]
        assert not far, f"{len(far)} of {len(expected)} tensors differ from mergekit's: {', '.join(far[:3])}"
        return Found(state)

    def _native(self) -> Path:
        """The same models and recipe, stored as they are in memory: so mergekit reads them."""
        folder = self.folder / "native"
        for name in ("base", *SOURCES):
            _load(self.folder / name).save_pretrained(folder / name, save_original_format=False)
            write_tokenizer(folder / name)
        (folder / "ties.yml").write_text(yaml.safe_dump(recipe(folder), sort_keys=False))
        return folder


def _tried(column: Callable[[], Found]) -> Found:
    try:
        return column()
    except (InputError, AssertionError) as error:
        return Found(FAILED, str(error))
    except Exception as error:  # whatever it is, the other columns are tried
        return Found(FAILED, f"{type(error).__name__}: {error}".strip())


@contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _load(folder: Path) -> Any:
    """The model of a folder, through the class that its configuration names. Every key fits."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    odd = {what: sorted(map(str, keys))[:3] for what, keys in info.items() if keys}
    assert not odd, f"transformers loads {folder.name} with {odd}"
    return model.eval()


def _answers(model: Any, folder: Path) -> list[str]:
    """What a model writes to the prompts of the tasks."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=True).input_ids
        with torch.no_grad():
            out = model.generate(tokens, max_new_tokens=WRITTEN, do_sample=False)
        found.append(tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))
    return found


def _scored(folder: Path) -> Any:
    """The model that lm-eval scores: of `AutoModelForCausalLM`, or, where that has none or does not find its weights in
    the folder, the whole one."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    causal = type(config) in transformers.AutoModelForCausalLM._model_mapping
    if causal:
        options = {"dtype": "auto", "output_loading_info": True}
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        if not info["missing_keys"]:
            return model.eval()
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


def _lm_eval(folder: Path) -> dict[str, float]:
    """The tasks' scores by `lm_eval.simple_evaluate`, of the model that lm-eval would load."""
    import lm_eval
    import transformers
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), _scored(folder)
    bars = io.StringIO()  # lm-eval shows them whatever it is told
    with redirect_stderr(bars), pytest.MonkeyPatch.context() as patch, _within(folder.parent / "tasks"):
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # seconds of shell commands
        patch.setattr(evaluator, "get_git_commit_hash", lambda: None)
        answer = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, softmax_dtype="float32"),
            tasks=list(TASKS),
            task_manager=TaskManager(include_path=str(folder.parent / "tasks"), include_defaults=False),
            bootstrap_iters=0,
        )
    return {name: answer["results"][name][f"{metric},none"] for name, metric in TASKS.items()}


def _check_scores(found: dict[str, float], expected: dict[str, float], text: str) -> None:
    for name, value in expected.items():
        assert abs(found[name] - value) <= 1e-3, text.format(name, f"{found[name]:.5g}", f"{value:.5g}")


def _same_name(name: str, names: Container[str]) -> str:
    """mergekit's name of a tensor, as `names` has it: mergekit may add the prefix of the inner model."""
    short = name.partition(".")[2]
    return short if name not in names and short in names else name


def _equal(found: Tensor, expected: Tensor, models: list[Tensor]) -> bool:
    """Equal as far as mergekit's roundings let it be: to a millionth in 32 bits; in 16, where mergekit rounds after
    every step, to two units in the last place of the larger of result and base. There, too, deltas' magnitudes are
    often equal, and of those at a threshold mergekit keeps the ones that an unstable sort puts first: these elements
    are not compared, and half a percent of the others may differ, where the signs of a sum are near to a draw."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    error, (base, *sources) = (found.float() - expected.float()).abs(), models
    if expected.dtype == torch.float32:
        return float(error.max()) <= 1e-6 * float(expected.abs().max())
    unit = torch.exp2(torch.floor(torch.log2(torch.maximum(expected.abs(), base.abs()).float().clamp_min(1e-30))) - 7)
    open_ = torch.zeros_like(error, dtype=torch.bool)
    for source in sources:
        size = (source - base).abs()
        open_ |= size == size.flatten().sort(descending=True).values[int(DENSITY * size.numel()) - 1]
    return float((~open_ & (error > 2 * unit)).float().mean()) <= 0.005


class Mergekit:
    """A process that merges with mergekit 0.1.5, which is imported once."""

    def __init__(self, command: Path) -> None:
        """`command`: the path of its `mergekit-yaml`."""
        python, code = command.parent / "python", Path(__file__).with_name("_mergekit_worker.py")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([str(python), str(code)], stdin=pipe, stdout=pipe, text=True)

    def merge(self, recipe: dict[str, Any], out: Path) -> str | None:
        """Writes the merge; returns why it cannot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"recipe": yaml.safe_dump(recipe), "out": str(out)}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        why: str | None = answer["error"]
        return why

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def mergekit() -> Mergekit | None:
    """mergekit, where the environment variable MERGEKIT names its `mergekit-yaml`."""
    command = os.environ.get("MERGEKIT")
    if command and not Path(command).is_file():
        sys.exit(f"MERGEKIT={command}: there is no such file")
    return Mergekit(Path(command)) if command else None
