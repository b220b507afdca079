"""A merge made again from its record: moved folders, changed sources, changed outputs, damaged records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.examine.reproduce import FileResult
from evomerge.merging.disk.stream import checkpoint_digest
from tests.checkpoints.variants import with_token, write_adapter

Said = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def published(tiny_models: Path, tmp_path: Path) -> Path:
    """A merge beside its models, in `there/merged`."""
    shutil.copytree(tiny_models, tmp_path / "there/models")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "# of a friend\nmerge_method: dare_ties\nrandom_seed: 4\nbase_model: there/models/base\nmodels:\n"
        + "".join(
            f"- {{model: there/models/{name}, parameters: {{weight: 0.5, density: 0.4}}}}\n" for name in ("one", "two")
        )
    )
    return evomerge.merge(recipe, tmp_path / "there/merged", shard_bytes=4000)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_record_holds_hashes_of_all_files_and_no_path(published: Path, tmp_path: Path) -> None:
    text = (published / "reproduce.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert {*record["files"]} == {f.name for f in published.iterdir()} - {"reproduce.json"}
    assert {*record["models"]} == {"base", "one", "two"}
    for name in ("base", "one", "two"):
        source, told = Checkpoint.open(str(published / f"../models/{name}")), record["models"][name]
        if name != "base":  # which gives its generation settings, too
            assert told["fingerprint"] == source.fingerprint()
        assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= {*told["files"]}
    assert "generation_config.json" in record["models"]["base"]["files"]
    assert record["digest"] == checkpoint_digest(published)
    assert record["versions"]["evomerge"]


def test_moved_folders_are_made_again_bit_for_bit(published: Path, tmp_path: Path, capsys: Said) -> None:
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    record = tmp_path / "elsewhere/merged/reproduce.json"
    assert main(["reproduce", str(record), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["equal"]
    assert told["digest"]["made"] == told["digest"]["recorded"]
    assert told["files"]["README.md"] == {"published": True, "made": None}
    others = {name: file for name, file in told["files"].items() if name != "README.md"}
    assert all(file == {"published": True, "made": True} for file in others.values())
    assert len([name for name in others if name.endswith(".safetensors")]) > 2
    result = evomerge.reproduce(record, tmp_path / "again")
    assert result.equal
    assert result.folder == tmp_path / "again"
    assert checkpoint_digest(tmp_path / "again") == told["digest"]["made"]


def test_a_record_alone_and_models_in_other_places(published: Path, tmp_path: Path, capsys: Said) -> None:
    shutil.copy(published / "reproduce.json", tmp_path / "alone.json")
    shutil.move(tmp_path / "there/models", tmp_path / "mine")
    shutil.move(tmp_path / "mine/one", tmp_path / "tuned")
    command = ["reproduce", str(tmp_path / "alone.json"), "--models", f"base={tmp_path}/mine/base"]
    assert main(command) == 2
    assert "the model one is not here; give its place: --models one=PATH" in capsys.readouterr().err
    command += ["--models", f"one={tmp_path}/tuned", "--models", f"two={tmp_path}/mine/two"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "the weights are equal, bit for bit" in out
    assert main([*command, "--models", "three=x"]) == 2
    assert "the merge has no model 'three'" in capsys.readouterr().err
    assert main([*command, "--models", "one=y"]) == 2
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_changed_source_is_refused_by_name(published: Path, tmp_path: Path, capsys: Said, file: str) -> None:
    name = "one" if file == "model.safetensors" else "base"
    flip(tmp_path / "there/models" / name / file)
    assert main(["reproduce", str(published / "reproduce.json"), "-o", str(tmp_path / "again")]) == 2
    said = capsys.readouterr().err
    assert f"{name} is not the model that was merged: " in said
    assert f"{name}/{file} is another one" in said
    assert not (tmp_path / "again").exists()
    (tmp_path / "there/models" / name / file).unlink()
    with pytest.raises(InputError, match=f"{file} is missing"):
        evomerge.reproduce(published / "reproduce.json")


def test_a_changed_output_is_reported(published: Path, capsys: Said) -> None:
    flip(sorted(published.glob("*.safetensors"))[1])
    (published / "tokenizer_config.json").unlink()
    assert main(["reproduce", str(published / "reproduce.json")]) == 1
    out = capsys.readouterr().out
    assert "the weights are equal, bit for bit" in out
    (line,) = [line for line in out.splitlines() if line.startswith("differs: ")]
    assert "tokenizer_config.json" in line
    assert "model-00002-of-" in line
    assert "config.json," not in line.replace("tokenizer_config.json", "")


def test_another_digest_is_reported(published: Path, capsys: Said) -> None:
    file = published / "reproduce.json"
    record = json.loads(file.read_text())
    record["recipe"] = record["recipe"].replace("random_seed: 4", "random_seed: 5")
    file.write_text(json.dumps(record))
    assert main(["reproduce", str(file)]) == 1
    assert "the weights differ: digest" in capsys.readouterr().out


def test_options_adapters_and_tokenizers_are_part_of_it(tiny_models: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_models, tmp_path / "models")
    base = Checkpoint.open(str(tmp_path / "models/base"))
    write_adapter(tmp_path / "lora", base)
    with_token(tmp_path / "models/one", tmp_path / "models/more", "<x>")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "merge_method: linear\nbase_model: models/base\nparameters: {weight: 1}\nout_dtype: bfloat16\n"
        "tokenizer_source: models/more\nmodels:\n- model: models/base+lora\n- model: models/two\n"
    )
    folder = evomerge.merge(recipe, tmp_path / "out")
    record = json.loads((folder / "reproduce.json").read_text())
    assert {*record["models"]} == {"base", "lora", "two", "more"}
    assert {"adapter_config.json", "adapter_model.safetensors"} == {*record["models"]["lora"]["files"]}
    assert evomerge.reproduce(folder / "reproduce.json").equal
    flip(tmp_path / "models/more/tokenizer.json")
    with pytest.raises(InputError, match="more is not the model that was merged"):
        evomerge.reproduce(folder / "reproduce.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format=2),
        lambda record: record.pop("digest"),
        lambda record: record.update(files={"../x": {"sha256": "0", "bytes": 1}}),
        lambda record: record.update(files={"/etc/passwd": {"sha256": "0", "bytes": 1}}),
        lambda record: record.update(files=3),
        lambda record: record["models"].pop("one"),
        lambda record: record.update(references={}),
        lambda record: record.update(recipe="models: ["),
        lambda record: record.update(recipe="merge_method: passthrough\nmodels: [{model: /etc}]"),
        lambda record: record["options"].update(shard_bytes="x"),
        lambda record: record["options"].update(shard_bytes=0),
        lambda record: record["models"]["one"].update(files={"x/../../y": {"sha256": "", "bytes": 0}}),
    ],
)
def test_damaged_records_are_one_line(
    published: Path, change: Callable[[dict[str, Any]], object], capsys: Said
) -> None:
    file = published / "reproduce.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    assert main(["reproduce", str(file)]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: ")
    assert said.out == ""


def test_equal_is_said_of_files_only() -> None:
    assert FileResult(None, None).equal
    assert not FileResult(True, False).equal
    assert not FileResult(False, True).equal
