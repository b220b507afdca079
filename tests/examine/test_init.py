"""`evomerge init`: what it writes passes a dry run, for every kind of source, and runs without an edit."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.examine.check import check
from evomerge.examine.checks.advice import groups_for
from evomerge.examine.init import init
from evomerge.examine.starter_fitness import (
    StarterFitness,
    StarterSlice,
    choose_slices,
    fitness_text,
    usual_metric,
)
from evomerge.files.pair import read_files
from evomerge.files.trees import as_scalar
from evomerge.scoring.tasks.built_in import built_in_tasks
from evomerge.scoring.tasks.task_files import TaskFile
from tests.checkpoints.variants import with_token, write_adapter
from tests.conftest import save_tiny, write_task
from tests.families.build import write_models
from tests.families.layouts import layouts

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
TASKS = ("tasks/tiny_a.yaml", "tasks/tiny_b.yaml")


@pytest.fixture
def place(tiny_study: Study) -> Path:
    """A folder with models and tasks, and no space."""
    tiny_study()
    Path("space.yaml").unlink()
    Path("fitness.yaml").unlink()
    return Path()


def passes(space: Path) -> dict[str, Any]:
    """Both files as data, once the dry run has passed them."""
    assert main(["search", str(space), "--dry-run"]) == 0
    return {
        **yaml.safe_load(space.read_text()),
        "slices": yaml.safe_load(read_files(space)[0].fitness.read_text())["slices"],
    }


def test_several_sources_have_weights_by_layer(place: Path) -> None:
    result = init("models/base", ["models/one", "models/two"], tasks=TASKS)
    data = passes(result.space)
    assert data["base"] == "models/base"
    assert data["sources"] == {"one": "models/one", "two": "models/two"}
    assert data["genes"]["method"] == "task_arithmetic"
    assert data["genes"]["weight"]["per"] == ["sources", "layers"]
    assert data["slices"]["tiny_a"] == {
        "task": "tiny_a", "metric": "acc", "floor": {"of": "best_source", "keep": 0.9}
    }  # fmt: skip
    assert result.genes == 4


def test_one_source_has_t(place: Path) -> None:
    data = passes(init("models/base", ["models/one"], tasks=TASKS).space)
    assert data["genes"]["method"] == "slerp"
    assert "t" in data["genes"]


def test_sources_far_apart_start_from_lower_weights(place: Path, tmp_path: Path) -> None:
    starts = []
    for scale in (0.002, 0.3):
        names = [str(save_tiny(tmp_path / f"{n}-{scale}", n, near=Path("models/base"), scale=scale)) for n in (5, 6)]
        data = passes(init("models/base", names, tasks=TASKS, force=True).space)
        starts.append(data["genes"]["weight"]["init"])
    assert starts == [0.5, 0.2]


def test_an_adapter_is_a_source(place: Path) -> None:
    write_adapter(Path("models/lora"), Checkpoint.open("models/base"))
    data = passes(init("models/base", ["models/lora", "models/one"], tasks=TASKS).space)
    assert data["sources"]["lora"] == "models/base+models/lora"


def test_a_source_with_more_tokens_makes_a_union(place: Path) -> None:
    with_token(Path("models/one"), Path("models/chat"), "<|im_start|>")
    data = passes(init("models/base", ["models/chat", "models/two"], tasks=TASKS).space)
    assert data["tokenizer"] == "union"


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"num_hidden_layers": 1}])
def test_other_models_pass(config: dict[str, Any], place: Path) -> None:
    save_tiny(Path("models/base2"), 1, **config)
    save_tiny(Path("models/near"), 2, near=Path("models/base2"), scale=0.01)
    passes(init("models/base2", ["models/near"], tasks=TASKS).space)


def test_a_mixture_of_experts_passes(place: Path) -> None:
    for name, seed in (("base3", 1), ("moe", 2)):
        save_mixture(Path("models") / name, seed)
    passes(init("models/base3", ["models/moe"], tasks=TASKS, trials=20).space)


def save_mixture(folder: Path, seed: int) -> None:
    """A tiny Mixtral; of one seed but for noise."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    shutil.copytree("models/base", folder)
    (folder / "model.safetensors").unlink()
    config = MixtralConfig(
        vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MixtralForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * seed * torch.randn_like(parameter))
    model.save_pretrained(folder)


def test_files_elsewhere_have_relative_paths(place: Path, tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    result = init("models/base", ["models/one"], tasks=TASKS, output="spaces/support.yaml")
    assert result.fitness == tmp_path / "spaces/support-fitness.yaml"
    data = passes(Path("spaces/support.yaml"))
    assert data["base"] == "../models/base"
    assert data["fitness"] == "support-fitness.yaml"
    assert yaml.safe_load(result.fitness.read_text())["include"] == ["../tasks"]


def test_a_fitness_file_that_is_there_is_used_as_it_is(place: Path) -> None:
    init("models/base", ["models/one"], tasks=TASKS)
    before = Path("fitness.yaml").read_text()
    result = init("models/base", ["models/two"], fitness="fitness.yaml", output="other.yaml")
    assert passes(result.space)["fitness"] == "fitness.yaml"
    assert Path("fitness.yaml").read_text() == before


def test_nothing_is_written_over_without_force(place: Path, capsys: Said) -> None:
    Path("fitness.yaml").write_text("mine")
    words = ["init", "models/base", "models/one", "--tasks", ",".join(TASKS)]
    assert main(words) == 2
    assert "fitness.yaml is there already" in capsys.readouterr().err
    assert Path("fitness.yaml").read_text() == "mine"
    assert not Path("space.yaml").exists()
    assert main([*words, "--force"]) == 0
    assert "wrote space.yaml and fitness.yaml" in capsys.readouterr().out


WRONG = {
    "no tasks": ([], "no tasks: nothing says what a merge must be able to do; give --tasks NAME"),
    "an unknown task": (["--tasks", "nonsense_task_x"], "lm-eval has no task 'nonsense_task_x'"),
    "no task file": (["--tasks", "tasks/absent.yaml"], "there is no file tasks/absent.yaml"),
    "a file that is no task": (["--tasks", "tasks/empty.yaml"], "defines no task"),
    "tasks and a fitness file": (["--tasks", "arc_easy", "--fitness", "f.yaml"], "two answers to one question"),
    "no ending": (["--tasks", "tasks/tiny_a.yaml", "-o", "space"], "give it the ending .yaml"),
    "no folder": (["--tasks", "tasks/tiny_a.yaml", "-o", "no/space.yaml"], "there is no folder"),
    "no name of a run": (["--tasks", "tasks/tiny_a.yaml", "-o", "my space.yaml"], "'my space' has other characters"),
    "two tasks of one name": (["--tasks", "tasks/tiny_a.yaml,other/tiny_a.yaml"], "two different tasks are called"),
    "too few trials": (["--tasks", "tasks/tiny_a.yaml", "--trials", "2"], "error: budget.trials: 2 trials leave none"),
    "tasks without a common metric": (["--tasks", "glue"], "the 9 tasks of 'glue' have no metric in common"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_writes_nothing(name: str, place: Path, capsys: Said) -> None:
    Path("tasks/empty.yaml").write_text("a: 1\n")
    Path("other").mkdir()
    write_task(Path("other"), "tiny_a", 9)
    words, said = WRONG[name]
    before = sorted(place.rglob("*"))
    assert main(["init", "models/base", "models/one", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("error: ") == 1
    assert sorted(place.rglob("*")) == before


def test_models_that_cannot_be_merged_are_refused(place: Path, tmp_path: Path) -> None:
    save_tiny(Path("models/stranger"), 9)
    save_tiny(Path("models/deep"), 9, num_hidden_layers=3)
    with pytest.raises(InputError, match="stranger does not descend from the base"):
        init("models/base", ["models/stranger"], tasks=TASKS)
    with pytest.raises(InputError, match="deep has 3 layers"):
        init("models/base", ["models/deep"], tasks=TASKS)
    assert not Path("space.yaml").exists()


def test_init_check_and_search_run_without_an_edit(place: Path, capsys: Said) -> None:
    words = ["models/base", "models/one", "models/two", "--tasks", ",".join(TASKS)]
    assert main(["init", *words, "--trials", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"space": "space.yaml", "fitness": "fitness.yaml", "genes": 2}
    assert main(["check", "space.yaml"]) == 0
    assert main(["search", "space.yaml"]) in (0, 1)
    assert len(evomerge.status("space").search.trials) == 8


def test_models_are_searched_in_one_go(place: Path, capsys: Said) -> None:
    words = ["search", "models/base", "models/one", "models/two", "--tasks", ",".join(TASKS), "--trials", "6"]
    assert main([*words, "--dry-run"]) == 0
    assert not Path("runs").exists()
    assert main(words) in (0, 1)
    run = Path("runs/one-two")
    assert "`evomerge init`" in (run / "starter-space.yaml").read_text()
    assert (run / "starter-fitness.yaml").is_file()
    assert yaml.safe_load((run / "space.yaml").read_text())["sources"].keys() == {"one", "two"}
    capsys.readouterr()
    assert main(words) == 2
    assert "the run 'one-two' is there already" in capsys.readouterr().err
    assert main(["resume", "one-two", "--trials", "7"]) in (0, 1)


def test_words_of_a_search_that_are_wrong(place: Path, capsys: Said) -> None:
    init("models/base", ["models/one"], tasks=TASKS)
    assert main(["search", "space.yaml", "--tasks", "arc_easy"]) == 2
    assert "--tasks goes with a base and its sources" in capsys.readouterr().err
    assert main(["search", "models/base", "models/one"]) == 2
    assert "no tasks" in capsys.readouterr().err
    assert main(["search", "models/base", "models/one", "--tasks", TASKS[0], "--trials", "1", "--run", "brief"]) == 2
    assert "error: budget.trials: 1 trials leave none to search" in capsys.readouterr().err
    assert not Path("runs/brief").exists()
    assert main(["search", "models/base", "--tasks", "arc_easy"]) == 2
    assert "give a base and at least one source" in capsys.readouterr().err


# Choices


def leaf(**config: Any) -> TaskFile:
    return TaskFile(Path("t.yaml"), {"task": "t", **config}, ())


@pytest.mark.parametrize(
    ("config", "metric", "lower"),
    [
        ({"output_type": "multiple_choice"}, "acc_norm", False),
        ({"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}, "acc", False),
        ({"output_type": "loglikelihood_rolling"}, "bits_per_byte", True),
        ({"output_type": "generate_until"}, "exact_match", False),
        (
            {"metric_list": [{"metric": "own", "higher_is_better": False}], "process_results": "!function x.y"},
            "own",
            True,
        ),
        (
            {
                "output_type": "generate_until",
                "metric_list": [{"metric": "exact_match"}],
                "filter_list": [{"name": "strict-match"}, {"name": "flexible-extract"}],
            },
            "exact_match,flexible-extract",
            False,
        ),
    ],
)
def test_the_usual_metric(config: dict[str, Any], metric: str, lower: bool) -> None:
    assert usual_metric("t", [leaf(**config)]) == (metric, lower)


def test_tasks_of_lm_eval_are_found_with_their_metrics() -> None:
    found = {s.task: s.metric for s in choose_slices(["arc_easy", "gsm8k", "wikitext"]).slices}
    assert found == {"arc_easy": "acc_norm", "gsm8k": "exact_match,flexible-extract", "wikitext": "bits_per_byte"}


@pytest.mark.parametrize(("name", "leaves"), [("glue", 9), ("openllm", 64), ("mmlu", 57), ("nonsense_x", 0)])
def test_groups_and_tags_over_several_folders_of_lm_eval(name: str, leaves: int) -> None:
    assert len(built_in_tasks(name)) == leaves


@pytest.mark.parametrize("kinds", [(True, False), (True, True), (False, False)])
def test_losses_and_scores_in_one_mean_are_pointed_out(kinds: tuple[bool, bool]) -> None:
    slices = tuple(StarterSlice(f"s{i}", f"t{i}", "m", lower, False) for i, lower in enumerate(kinds))
    text = fitness_text(StarterFitness(slices, ()), Path("fitness.yaml"))
    assert ("weight: 0" in text) == (len(set(kinds)) == 2)
    assert set(yaml.safe_load(text)["slices"]) == {"s0", "s1"}


@given(st.integers(1, 20), st.integers(1, 100), st.integers(1, 2000))
def test_no_more_numbers_than_trials_can_search(sources: int, layers: int, trials: int) -> None:
    groups = groups_for(sources, layers, trials)
    assert 1 <= groups <= min(layers, 8)
    assert groups == 1 or groups * sources * 8 <= trials


@given(st.text(min_size=1, max_size=40))
def test_a_scalar_reads_back_as_its_text(text: str) -> None:
    written = as_scalar(text)
    assert "\n" not in written
    assert yaml.safe_load(f"key: {written}\n") == {"key": text}


@pytest.mark.slow
def test_the_specialists_run_from_init_to_search(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = shared / "specialists"
    templates = Path(__file__).parents[1] / "scoring/task_files"
    names = ("french", "gsm8k", "shakespeare")
    (tmp_path / "tasks").mkdir()
    for name in names:
        text = (templates / f"{name}_text.yaml").read_text().replace("ITEMS", str(root / "items"))
        (tmp_path / f"tasks/{name}.yaml").write_text(text)
    sources = [str(root / name) for name in names]
    init(str(root / "base"), sources, tasks=[f"tasks/{name}.yaml" for name in names], trials=20)
    assert main(["check", "space.yaml"]) == 0
    assert main(["search", "space.yaml"]) in (0, 1)
    assert len(evomerge.status("space").search.trials) == 20


def test_a_task_of_a_group_folder(place: Path) -> None:
    Path("tasks/group.yaml").write_text("group: both\ntask: [tiny_a, tiny_b]\n")
    write_task(Path("tasks"), "tiny_c", 3)
    (slice_,) = choose_slices(["tasks/group.yaml"]).slices
    assert (slice_.task, slice_.metric) == ("both", "acc")


LAYOUTS = {layout.name: layout for layout in layouts()}


@pytest.mark.parametrize("name", ["gemma3 (hub)", "qwen3_moe (hub)", "jamba (hub)"])
def test_models_of_other_families_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vision-language model, a mixture of experts, a hybrid: with several sources and with one."""
    monkeypatch.chdir(tmp_path)
    write_models(LAYOUTS[name], tmp_path)
    Path("tasks").mkdir()
    write_task(Path("tasks"), "tiny_a", 1)
    passes(init("base", ["a", "b"], tasks=TASKS[:1]).space)
    passes(init("base", ["a"], tasks=TASKS[:1], output="one.yaml").space)
    assert check("space.yaml").mergeable


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_asks_for_the_tasks_and_nothing_else(
    place: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{TASKS[0]}, {TASKS[1]}\n"))
    assert main(["init", "models/base", "models/one"]) == 0
    assert "Tasks" in capsys.readouterr().err
    assert passes(Path("space.yaml"))["slices"].keys() == {"tiny_a", "tiny_b"}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TASKS[0]}\n"))
    assert main(["init", "models/base", "models/one", "--force"]) == 2
    assert "no tasks" in capsys.readouterr().err
