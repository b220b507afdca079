"""`evomerge check`: what is wrong with models is named before they are merged, and nothing of sound ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cards.licences import Licence, licence_of
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.examine.check import Checked, check
from evomerge.examine.checks.licences import compare_licences
from evomerge.examine.checks.parents import named
from tests.checkpoints.sparse_models import write_sparse
from tests.checkpoints.variants import reordered_copy, with_token, write_adapter
from tests.conftest import save_tiny

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]


def levels(result: Checked, level: str) -> list[str]:
    return [f"{finding.topic}: {finding.text}" for finding in result.findings if finding.level == level]


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes with small deltas."""
    root = tmp_path_factory.mktemp("near")
    save_tiny(root / "base", 1)
    save_tiny(root / "one", 2, near=root / "base", scale=0.001)
    save_tiny(root / "two", 3, near=root / "base", scale=0.001)
    return root


def models(root: Path, *names: str) -> list[str]:
    return [str(root / name) for name in names]


def test_sound_models_have_no_problem_and_no_warning(near: Path) -> None:
    result = check(models(near, "base", "one", "two"))
    assert result.mergeable
    assert levels(result, "warning") == []
    assert [model.name for model in result.models] == ["base", "one", "two"]
    assert result.deltas is not None
    assert result.plan.keys() == {"weights", "peak memory", "merge of a candidate"}
    assert any("task_arithmetic" in tip.what for tip in result.advice)
    assert all(tip.why for tip in result.advice)
    assert [signal.name for signal in result.signals if signal.correlation is not None] == [
        "spread",
        "cosine with base",
    ]
    alone = check(models(near, "base", "one")).signals
    assert {signal.correlation for signal in alone} == {None}
    assert "spread" not in [signal.name for signal in alone]


def test_a_space_and_a_recipe_name_their_models(tiny_study: Study, capsys: Said) -> None:
    space = tiny_study()
    assert [m.name for m in evomerge.check(space).models] == ["base", "one", "two"]
    recipe = {"merge_method": "dare_ties", "base_model": "models/base", "parameters": {"weight": 0.5, "density": 0.5}}
    recipe["models"] = [{"model": "models/one"}, {"model": "models/two"}]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = check("recipe.yaml")
    assert [m.name for m in result.models] == ["base", "one", "two"]
    assert any("DARE on large deltas" in line for line in levels(result, "warning"))
    assert main(["check", "recipe.yaml", "--figure", "map.png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mergeable"] is True
    assert told["figure"] == "map.png"
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    assert {place["module"] for place in told["lineage"]["places"]} >= {"mlp.up_proj", "model.norm"}


def test_a_recipe_that_does_not_fit_is_a_problem(tiny_study: Study) -> None:
    tiny_study()
    save_tiny(Path("models/deep"), 4, num_hidden_layers=3)
    recipe = {"merge_method": "linear", "parameters": {"weight": 0.5}}
    recipe["models"] = [{"model": "models/base"}, {"model": "models/deep"}]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = check("recipe.yaml")
    assert not result.mergeable
    (line,) = levels(result, "problem")
    assert "layers" in line


@pytest.mark.parametrize("arguments", [["models/base"], ["nothing.yaml"], ["models/base", "models/bass"], ["models"]])
def test_wrong_input_is_one_line(arguments: list[str], tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    assert main(["check", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("error: ")


def test_other_layers_are_a_problem_and_the_rest_is_still_checked(near: Path, tmp_path: Path, capsys: Said) -> None:
    deep = save_tiny(tmp_path / "deep", 4, num_hidden_layers=3)
    assert main(["check", *models(near, "base", "one"), str(deep)]) == 1
    printed = capsys.readouterr().out
    assert "deep has 3 layers, the base has 2" in printed
    assert printed.rstrip().endswith("cannot be merged as they are: 1 problem")
    assert "Deltas from the base" in printed


def test_the_same_model_twice_and_nan(near: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(near / "one", tmp_path / "broken")
    state = load_file(tmp_path / "broken/model.safetensors")
    state["model.norm.weight"][0] = float("inf")
    save_file(state, tmp_path / "broken/model.safetensors", {"format": "pt"})
    result = check([*models(near, "base", "one", "one"), str(tmp_path / "broken")])
    told = " ".join(levels(result, "problem"))
    assert "the same checkpoint" in told
    assert "broken holds NaN or Inf in model.norm.weight" in told


# Lineage


def test_unrelated_models_are_named_with_a_way_out(near: Path, tmp_path: Path) -> None:
    stranger = save_tiny(tmp_path / "stranger", 9)
    result = check([*models(near, "base", "one"), str(stranger)])
    (line,) = levels(result, "problem")
    assert "stranger does not descend from the base" in line
    assert "`evomerge align`" in line
    assert result.advice == []


def test_equal_norms_do_not_make_models_related(near: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "stranger", 9)
    shutil.copytree(near / "base", tmp_path / "base")
    for name in ("base", "stranger"):
        file = tmp_path / name / "model.safetensors"
        state = {key: 10 * value if "norm" in key else value for key, value in load_file(file).items()}
        save_file(state, file, {"format": "pt"})
    assert not check(models(tmp_path, "base", "stranger")).mergeable


def test_a_stranger_that_the_space_aligns_is_no_problem(tiny_study: Study) -> None:
    save_tiny(Path("stranger"), 9)

    def aligned(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["one"] = {"path": str(Path("stranger").resolve()), "align": True}

    result = check(tiny_study(aligned))
    assert result.mergeable
    assert any("one does not descend" in line and "`align: true`" in line for line in levels(result, "note"))


def test_a_recipe_without_a_base_has_no_deltas_of_training(tiny_study: Study) -> None:
    tiny_study()
    recipe = {"merge_method": "linear", "parameters": {"weight": 0.5}}
    recipe["models"] = [{"model": "models/one"}, {"model": "models/two"}]
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = check("recipe.yaml")
    assert result.mergeable
    assert any("the recipe has no base: models/one stands for it" in line for line in levels(result, "note"))
    assert not any(line.startswith("lineage") for line in levels(result, "warning"))
    assert (result.signals, result.advice) == ([], [])


def test_large_deltas_warn_and_speak_against_dare(tiny_models: Path) -> None:
    result = check(models(tiny_models, "base", "one", "two"))
    assert any("continued pretraining" in line for line in levels(result, "warning"))
    assert any(tip.what.startswith("no dare") for tip in result.advice)


def test_opposed_and_equal_deltas_are_warnings(near: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, one = (load_file(near / name / "model.safetensors") for name in ("base", "one"))
    for name, factor in (("against", -1.0), ("again", 1.1)):
        shutil.copytree(near / "one", tmp_path / name)
        state = {k: base[k] + factor * (one[k] - base[k]) for k in base}
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
    result = check([*models(near, "base", "one"), *models(tmp_path, "against", "again")])
    told = levels(result, "warning")
    assert any("one and against point against each other (cosine -1.00)" in line for line in told)
    assert any("one and again are nearly the same delta (cosine 1.00)" in line for line in told)


def test_a_lora_source_changes_few_directions_and_leaves_the_rest(near: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", Checkpoint.open(str(near / "base")), rank=1)
    result = check([str(near / "base"), str(adapter)])
    told = levels(result, "note")
    assert any("lie in few directions" in line for line in told)
    assert any("no source changed a sampled element of" in line for line in told)


# Tokens


def test_tokens_that_a_source_adds(near: Path, tmp_path: Path, capsys: Said) -> None:
    chat = with_token(near / "one", tmp_path / "chat", "<|im_start|>")
    result = check([str(near / "base"), str(chat)])
    assert any("tokenizer base: drops 1 tokens of chat ('<|im_start|>')" in line for line in levels(result, "warning"))
    assert any("tokenizer union: adds 1 tokens" in line for line in levels(result, "note"))
    arguments = ["check", str(near / "base"), str(chat), "--require-token"]
    assert main([*arguments, "<|im_start|>"]) == 1
    assert "tokenizer base loses the token '<|im_start|>' of chat; tokenizer: union keeps it" in capsys.readouterr().out
    assert main([*arguments, "a"]) == 0
    assert main([*arguments, "<nowhere>"]) == 1
    assert "no model has the token '<nowhere>'" in capsys.readouterr().out


def test_a_space_with_union_keeps_a_required_token(tiny_study: Study, near: Path) -> None:
    def union(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space |= {"tokenizer": "union", "sources": {"chat": "models/chat"}}

    tiny_study()
    with_token(near / "one", Path("models/chat"), "<x>")
    space = tiny_again(union)
    assert check(space, require_token=["<x>"]).mergeable


def tiny_again(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    space, fitness = (yaml.safe_load(Path(name).read_text()) for name in ("space.yaml", "fitness.yaml"))
    change(space, fitness)
    Path("space.yaml").write_text(yaml.safe_dump(space))
    return Path("space.yaml")


def test_ids_in_another_order_are_named_by_check_and_dry_run(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    shutil.rmtree("models/two")
    reordered_copy(Path("models/base"), Path("models/two"))
    told = levels(check(["models/base", "models/two"]), "warning")
    assert any("base and two order 2 ids differently" in line for line in told)
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    assert "(base, one) and two order 2 ids differently" in capsys.readouterr().out


def test_templates_generation_and_settings_are_compared(near: Path, tmp_path: Path) -> None:
    for name in ("left", "right"):
        shutil.copytree(near / "one", tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(f"{{{{ messages[0].content }}}}{name}")
    change_json(tmp_path / "left/generation_config.json", eos_token_id=[1, 5])
    change_json(tmp_path / "right/config.json", rms_norm_eps=0.01)
    change_json(tmp_path / "right/tokenizer_config.json", eos_token="a")
    result = check([str(near / "base"), *models(tmp_path, "left", "right")])
    told = " ".join(levels(result, "warning"))
    assert "2 different ones (left; right; none: base)" in told
    assert "rms_norm_eps is 1e-06 in base, left, 0.01 in right" in told
    notes = " ".join(levels(result, "note"))
    assert "eos_token_id is 1 in base, right, [1, 5] in left" in notes
    assert "eos_token is '</s>' in base, left, 'a' in right" in notes


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# Licences


def test_licences_of_cards_are_compared(near: Path, tmp_path: Path) -> None:
    for name, licence in (
        ("free", "apache-2.0"),
        ("bound", "cc-by-nc-nd-4.0"),
        ("own", "other\nlicense_name: llama3.1"),
    ):
        shutil.copytree(near / "one", tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\ntags: [a]\n---\n# Card\n")
    result = check([str(near / "base"), *models(tmp_path, "free", "bound", "own")])
    assert [model.licence for model in result.models] == [None, "apache-2.0", "cc-by-nc-nd-4.0", "llama3.1"]
    told = [line for line in levels(result, "warning") if line.startswith("licences")]
    assert any(
        "non-commercial: the licence of bound" in line and "beside it free (apache-2.0)" in line for line in told
    )
    assert any("no derivatives" in line for line in told)
    assert any("naming" in line and "own (llama3.1)" in line for line in told)
    assert result.mergeable


@pytest.mark.parametrize("card", ["", "---\n", "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n", "# no front matter"])
def test_a_card_without_a_licence_names_none(card: str, near: Path, tmp_path: Path) -> None:
    shutil.copytree(near / "one", tmp_path / "m")
    (tmp_path / "m/README.md").write_text(card)
    assert licence_of(Checkpoint.open(str(tmp_path / "m"))) == Licence(None)


@pytest.mark.parametrize("before", ["\n", "\ufeff", " \r\n"])
def test_front_matter_may_follow_space_as_on_the_hub(before: str, near: Path, tmp_path: Path) -> None:
    shutil.copytree(near / "one", tmp_path / "m")
    (tmp_path / "m/README.md").write_text(f"{before}---\nlicense: MIT\n---\n", encoding="utf-8")
    assert licence_of(Checkpoint.open(str(tmp_path / "m"))) == Licence("mit")


def test_equal_permissive_licences_are_nothing_to_say() -> None:
    assert compare_licences({"a": Licence("mit"), "b": Licence("mit")}) == []
    assert compare_licences({"a": Licence("mit"), "b": Licence("apache-2.0")})[0].level == "note"


# Warnings elsewhere


def test_dare_over_large_deltas_warns_where_it_is_run(tiny_study: Study, capsys: Said) -> None:
    def dare(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"] = {"method": "dare_linear", "weight": {"low": 0.0, "high": 1.0}}
        space["fixed"] = {"density": 0.5}
        space["budget"] = {"trials": 5}

    tiny_study(dare)
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    assert "DARE on large deltas" in capsys.readouterr().out
    assert main(["search", "space.yaml"]) in (0, 1)
    assert "DARE on large deltas" in capsys.readouterr().err
    assert main(["export", "space", "--trial", "4", "--allow-infeasible", "-o", "best.yaml"]) == 0
    capsys.readouterr()
    assert main(["merge", "best.yaml", "out"]) == 0
    assert "DARE on large deltas" in capsys.readouterr().err


def test_names_of_models_are_legal_and_distinct() -> None:
    found = named(["a/base", "b/base", "org/Chat-7B@main", "m/7b", "x+adapters/lora"])
    assert list(found) == ["base-2", "base-3", "Chat-7B", "source-7b", "lora"]
    assert list(named(["m/" + "é" * 200, "n/" + "é" * 200])) == ["é" * 60, "é" * 60 + "-2"]


# Full size


def test_70_billion_parameters_take_a_part_of_the_memory(tmp_path: Path) -> None:
    """In a process of its own: a gigabyte is less than a hundredth of one of the three models."""
    folders = [str(write_sparse(tmp_path / name)) for name in ("base", "a", "b")]
    # VmHWM: what getrusage tells includes the process that was forked
    code = (
        "import re, sys; from evomerge.cli import main\n"
        f"code = main(['check', *{folders!r}, '--json'])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["models"][0]["elements"] > 70e9
    assert len(told["lineage"]["untouched"]) == 723
    assert int(done.stderr.splitlines()[-1]) < 1_000_000


def test_advice_follows_what_is_seen(near: Path, tmp_path: Path) -> None:
    """A source that moved further, a layer that nobody changed, sources that are far apart: each is a reason."""
    from safetensors.torch import load_file, save_file

    base, one = (load_file(near / name / "model.safetensors") for name in ("base", "one"))
    for name, factor in (("far", 30.0), ("half", 0.5)):
        shutil.copytree(near / "one", tmp_path / name)
        state = {k: base[k] + factor * (one[k] - base[k]) * (".layers.0." not in k) for k in base}
        save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
    tips = {tip.what: tip.why for tip in check([str(near / "base"), *models(tmp_path, "far", "half")]).advice}
    assert "60.0 times that of half" in tips["a lower weight for far"]
    assert "freeze: {layers: [0]}" in tips
    assert "model_stock" in " ".join(tips)
    opposed = check([*models(near, "base", "one", "two")]).advice
    assert not any("weight for" in tip.what or "freeze" in tip.what for tip in opposed)


def test_models_of_a_path_are_checked_for_a_path(tiny_study: Study, tmp_path: Path) -> None:
    def make(kind: str, **more: Any) -> Checked:
        def change(space: dict[str, Any], _: Any) -> None:
            del space["layers"], space["genes"]
            space |= {"space": kind, **more}

        return check(tiny_study(change))

    first = make("dataflow")
    save_tiny(tmp_path / "models/deep", 4, num_hidden_layers=3)
    sources = {"one": "models/one", "deep": "models/deep"}
    deeper = make("dataflow", sources=sources)  # of another seed, too
    for result in (first, deeper):
        assert result.mergeable
        assert (result.deltas, result.spectrum, result.signals) == (None, None, [])
        assert [tip.what.split()[:2] for tip in result.advice] == [["space:", "weights"]]
    assert "tensors: not compared: deep has 3 layers, the base has 2" in levels(deeper, "note")
    save_tiny(tmp_path / "models/wide", 5, hidden_size=8)
    (wrong,) = levels(make("dataflow", sources={"wide": "models/wide"}), "problem")
    assert wrong.startswith("tensors: wide has hidden_size 8, base has 16; stack layers")
    assert make("dataflow", sources={}, path=["base"]).mergeable

    genes = {"method": "ties", "weight": {"low": 0, "high": 1, "init": 0.4, "per": ["sources", "layers"]}}
    both = make("both", genes=genes, blocks=2, budget={"trials": 64})
    assert both.advice[0].what.endswith("weight per sources and layers, blocks: 2")
    assert not [tip for tip in both.advice if tip.what.startswith("freeze")]
