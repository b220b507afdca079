"""Tasks that show images: scored as lm-eval's `hf-multimodal` scores them, and searched."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.tasks import TaskManager
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

import evomerge
from evomerge.checkpoints.checkpoint import IMAGE_FILES
from evomerge.errors import InputError
from evomerge.files.fitness_file import read_fitness
from evomerge.scoring.preflight import check_fitness
from evomerge.study.dry_run import dry_run

pytestmark = pytest.mark.slow

TASK = """task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_image: [image]
doc_to_text: "<image> {{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
WRITES = """generation_kwargs: {max_gen_toks: 3, do_sample: false, until: []}
metric_list: [{metric: exact_match}]"""
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 30), (0, 0, 0), (255, 255, 255)]


def write_models(folder: Path, tokenizer: Any) -> None:
    """A tiny LLaVA, and two that were changed in tower, projector and language model."""
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
        },
        vision_config={
            "model_type": "clip_vision_model",
            **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim"), 16),
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for name in ("base", "a", "b"):
        with torch.no_grad():
            for parameter in model.parameters() if name != "base" else ():
                parameter.add_(0.05 * torch.randn_like(parameter))
            model.lm_head.weight.mul_(1.0 if name != "base" else 8.0)
        model.save_pretrained(folder / name)
        images = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
        processor = LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default",
                                   num_additional_image_tokens=1)  # fmt: skip
        processor.save_pretrained(folder / name)


def write_task(folder: Path, answers: list[str], name: str = "colours", kind: str = "generate_until") -> None:
    rows = []
    for i, answer in enumerate(answers):
        pixels = np.full((16, 16, 3), COLOURS[i % len(COLOURS)], dtype=np.uint8)
        pixels[: i + 1] //= 2
        image = io.BytesIO()
        Image.fromarray(pixels).save(image, format="PNG")
        rows.append({"image": {"bytes": image.getvalue(), "path": None}, "question": "what", "answer": answer})
    import datasets

    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (folder / "tasks").mkdir(exist_ok=True)
    data = folder / "tasks" / f"{name}.parquet"
    table.to_parquet(data)
    more = WRITES if kind == "generate_until" else "doc_to_choice: [x, y]"
    (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind, more=more))


def asked(folder: Path, model: str, **options: Any) -> dict[str, Any]:
    lm = HFMultimodalLM(pretrained=str(folder / model), batch_size=4, device="cpu", dtype="float32")
    manager = TaskManager(include_path=str(folder / "tasks"))
    return dict(lm_eval.simple_evaluate(model=lm, tasks=["colours"], task_manager=manager, log_samples=True, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Models, and a task whose answers are what the base says to the first half of the images."""
    folder = tmp_path_factory.mktemp("images")
    reading = copy.deepcopy(tokenizer)
    reading.add_tokens(["<image>"], special_tokens=True)
    reading.chat_template = CHAT
    write_models(folder, reading)
    write_task(folder, ["?"] * 16)
    said = [sample["filtered_resps"][0] for sample in asked(folder, "base")["samples"]["colours"]]
    assert len(set(said)) > 1, "the answers depend on the image"
    write_task(folder, [answer if i % 3 else "?" for i, answer in enumerate(said)])
    fitness = {"include": str(folder / "tasks"), "slices": {"colours": {"task": "colours", "metric": "exact_match"}}}
    (folder / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    return folder


def test_scores_are_lm_eval_s(folder: Path) -> None:
    for model in ("base", "a"):
        found = evomerge.evaluate(folder / model, folder / "fitness.yaml", split="all", device="cpu")
        expected = asked(folder, model)["results"]["colours"]["exact_match,none"]
        assert found.scores["colours"].value == pytest.approx(expected)
        assert expected > 0.0 or model != "base"


def test_in_a_chat(folder: Path) -> None:
    said = [s["filtered_resps"][0] for s in asked(folder, "b", apply_chat_template=True)["samples"]["colours"]]
    write_task(folder, [answer if i % 2 else "?" for i, answer in enumerate(said)], "chat")
    slice_ = {"task": "chat", "metric": "exact_match", "apply_chat_template": True}
    fitness = {"include": str(folder / "tasks"), "slices": {"chat": slice_}}
    (folder / "chat.yaml").write_text(yaml.safe_dump(fitness))
    found = evomerge.evaluate(folder / "b", folder / "chat.yaml", split="all", device="cpu")
    assert found.scores["chat"].value >= 0.5
    plain = {**slice_, "apply_chat_template": False}
    (folder / "chat.yaml").write_text(yaml.safe_dump({**fitness, "slices": {"chat": slice_, "plain": plain}}))
    both = evomerge.evaluate(folder / "b", folder / "chat.yaml", split="all", device="cpu")
    assert both.scores["chat"].value == found.scores["chat"].value > both.scores["plain"].value


def test_they_are_searched(folder: Path) -> None:
    """The winner's folder has its digest and its score; the base's own floor holds it."""
    space = {
        "base": str(folder / "base"),
        "sources": {name: str(folder / name) for name in ("a", "b")},
        "genes": {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}},
        "budget": {"trials": 6},
        "fitness": str(folder / "fitness.yaml"),
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    result = evomerge.search(folder / "space.yaml", run=folder / "run", device="cpu")
    assert not [trial.reason for trial in result.search.trials if trial.state == "failed"]
    assert result.winner is not None
    evomerge.export(folder / "run", folder / "winner.yml")
    winner = evomerge.merge(folder / "winner.yml", folder / "winner")
    again = evomerge.evaluate(winner, folder / "fitness.yaml", split="holdout", device="cpu")
    assert again.digest == result.winner.digest
    assert again.scores["colours"].value == result.winner.scores["colours"]
    processor = AutoProcessor.from_pretrained(winner)
    assert processor.image_processor is not None


def test_examples_are_refused(folder: Path) -> None:
    """lm-eval shows them without their images. A dry run says so, too."""
    slice_ = {"task": "colours", "metric": "exact_match", "num_fewshot": 2}
    fitness = {"include": str(folder / "tasks"), "slices": {"colours": slice_}}
    (folder / "few.yaml").write_text(yaml.safe_dump(fitness))
    with pytest.raises(InputError, match=r"slices.colours.num_fewshot: task 'colours' shows images and has few-shot"):
        check_fitness(read_fitness(folder / "few.yaml"), [])


def test_a_folder_without_processor_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    for file in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "base" / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"slices.colours.task: .*base has .*; put preprocessor_config.json or pro"):
        evomerge.evaluate(tmp_path / "base", folder / "fitness.yaml", device="cpu")


@pytest.mark.parametrize(("lost", "told"), [
    ("processor", r"slices.colours.task: task 'colours' shows images, and .*base has no processor; put pre"),
    ("tower", r"slices.colours.task: task 'colours' shows images, and .*base, a 'llama' model, takes none"),
])  # fmt: skip
def test_a_dry_run_knows_who_takes_images(lost: str, told: str, folder: Path, tmp_path: Path) -> None:
    for name in ("base", "a"):
        shutil.copytree(folder / name, tmp_path / name)
        if lost == "tower":
            config = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 259}
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        for file in IMAGE_FILES if lost == "processor" else ():
            (tmp_path / name / file).unlink(missing_ok=True)
    genes = {"method": "task_arithmetic", "weight": {"low": 0.0, "high": 1.0, "per": ["sources"]}}
    space = {"base": str(tmp_path / "base"), "sources": {"a": str(tmp_path / "a")}, "genes": genes}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**space, "fitness": str(folder / "fitness.yaml")}))
    with pytest.raises(InputError, match=told):
        dry_run(tmp_path / "space.yaml")


def test_one_question_about_many_images_is_no_mistake(folder: Path) -> None:
    assert not evomerge.evaluate(folder / "base", folder / "fitness.yaml", device="cpu").slices["colours"].doubts


def test_a_model_without_images_is_refused(folder: Path, tmp_path: Path, tokenizer: Any, model: Any) -> None:
    model.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    with pytest.raises(
        InputError, match=r"fitness.yaml:\d+: slices.colours.task: the task shows images, and the model, a Llama"
    ):
        evomerge.evaluate(tmp_path / "text", folder / "fitness.yaml", device="cpu")


def test_likelihoods_are_refused(folder: Path, tmp_path: Path) -> None:
    """lm-eval has none of answers about images."""
    write_task(tmp_path, ["x"] * 8, "choices", "multiple_choice")
    fitness = {"include": str(tmp_path / "tasks"), "slices": {"choices": {"task": "choices", "metric": "acc"}}}
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    with pytest.raises(
        InputError, match=r"slices.choices.task: task 'choices' shows images and does not generate text"
    ):
        evomerge.evaluate(folder / "base", tmp_path / "fitness.yaml", device="cpu")
