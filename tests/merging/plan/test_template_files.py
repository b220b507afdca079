"""The chat template of a written checkpoint: every reader finds the same one."""

from __future__ import annotations

import json

import pytest
import tiny_models
from transformers import AutoTokenizer, ProcessorMixin

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.merging.plan.template_files import with_template
from evomerge.recipe.mergekit import parse_recipe

OLD, NEW, TOOLS = "OLD {{ messages[0].content }}", "NEW {{ messages[0].content }}", "TOOLS {{ messages }}"
NAMED = "additional_chat_templates/tool_use.jinja"


def encoded(files):
    return {n: (c if isinstance(c, str) else json.dumps(c)).encode() for n, c in files.items()}


def listed(default=OLD):
    pairs = {"default": default, "tool_use": TOOLS}
    return {"chat_template": [{"name": name, "template": text} for name, text in pairs.items()]}


SOURCES = {
    "the file": {"chat_template.jinja": OLD, "tokenizer_config.json": {}},
    "the configuration": {"tokenizer_config.json": {"chat_template": OLD}},
    "both": {"chat_template.jinja": OLD, "tokenizer_config.json": {"chat_template": OLD}},
    "two that differ": {"chat_template.jinja": OLD, "tokenizer_config.json": {"chat_template": "OLDER"}},
    "a list": {"tokenizer_config.json": listed()},
    "files of names": {"chat_template.jinja": OLD, NAMED: TOOLS, "tokenizer_config.json": {}},
    "a processor": {"chat_template.json": {"chat_template": OLD}, "tokenizer_config.json": {}},
    "a processor and a list": {"chat_template.json": {"chat_template": OLD}, "tokenizer_config.json": listed()},
    "a processor and files of names": {
        "chat_template.json": {"chat_template": OLD}, "chat_template.jinja": OLD, NAMED: TOOLS,
        "tokenizer_config.json": {},
    },
    "a processor's configuration": {"processor_config.json": {"chat_template": OLD}, "tokenizer_config.json": {}},
    "none": {"tokenizer_config.json": {}},
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """What each reader finds in a folder of these files: transformers 5, earlier versions, processors, gguf."""

    def readers(files):
        folder = tmp_path / "out"
        folder.mkdir()
        tiny_models.write_tokenizer(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(settings | json.loads(config.read_text())))
        found = {
            "tokenizer": AutoTokenizer.from_pretrained(folder).chat_template,
            "processor": ProcessorMixin.get_processor_dict(folder)[0].get("chat_template"),
        }
        if "chat_template" in json.loads(config.read_text()):
            found["configuration"] = json.loads(config.read_text())["chat_template"]
        return found

    return readers


@pytest.mark.parametrize("name", SOURCES)
def test_every_reader_finds_the_recipe_s_template(name, read):
    found = read(with_template(encoded(SOURCES[name]), NEW))
    assert found == {"tokenizer": NEW, "processor": NEW, "configuration": NEW}


@pytest.mark.parametrize("name", [name for name in SOURCES if SOURCES[name] != {"tokenizer_config.json": {}}])
def test_readers_of_a_tokenizer_agree_where_a_recipe_names_none(name, read):
    found = read(with_template(encoded(SOURCES[name]), None))
    own = [found["tokenizer"], found.get("configuration", found["tokenizer"])]
    if name in ("a processor", "a processor's configuration"):
        assert own == [None, None]
        assert found["processor"] == OLD
        return
    defaults = []
    for template in own:
        template = {t["name"]: t["template"] for t in template} if isinstance(template, list) else template
        assert template == (template if isinstance(template, str) else {"default": OLD, "tool_use": TOOLS})
        defaults.append(template if isinstance(template, str) else template["default"])
    assert defaults == [OLD, OLD]


@pytest.mark.parametrize("name", ["the file", "the configuration", "both", "a list", "files of names", "a processor"])
def test_files_that_agree_stay_as_they_are(name):
    assert with_template(encoded(SOURCES[name]), None) == encoded(SOURCES[name])


@pytest.mark.parametrize(
    "name", ["a list", "files of names", "a processor and a list", "a processor and files of names"]
)
def test_templates_with_names_stay_beside_their_own_default_only(name, read):
    files = with_template(encoded(SOURCES[name]), f"{OLD}\n")
    found = read(files)
    assert found["tokenizer"] == {"default": f"{OLD}\n", "tool_use": TOOLS}
    assert NAMED not in with_template(encoded(SOURCES[name]), NEW)


def test_a_name_that_is_a_path_is_refused():
    stored = {"chat_template": [{"name": "../x", "template": TOOLS}, {"name": "default", "template": OLD}]}
    with pytest.raises(InputError, match="is a path"):
        with_template(encoded({"tokenizer_config.json": stored}), OLD)


class TestMerged:
    """Whole merges, from recipes."""

    @pytest.fixture
    def pair(self, tmp_path):
        folders = {n: tiny_models.write(tmp_path / n, tiny_models.base_tensors(i)) for i, n in enumerate("ab")}
        for folder in folders.values():
            config = folder / "tokenizer_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": OLD}))
        return folders

    def merged(self, pair, tmp_path, text, **options):
        lines = "".join(f"- {{model: {pair[n]}, parameters: {{weight: 1}}}}\n" for n in "ab")
        return merge(parse_recipe(f"merge_method: linear\nmodels:\n{lines}{text}\n"), tmp_path / "out", **options)

    def test_a_key_of_the_configuration_gives_way(self, pair, tmp_path):
        folder = self.merged(pair, tmp_path, "chat_template: llama3")
        assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATES["llama3"]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["chat_template"] == CHAT_TEMPLATES["llama3"]
        assert settings["eos_token"] == "</s>"

    @pytest.mark.parametrize("setting", ["chat_template: chatml", ""])
    @pytest.mark.parametrize("rebuilt", [False, True])
    def test_a_processor_keeps_its_files(self, setting, rebuilt, pair, tmp_path):
        for folder in pair.values():
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": "VLM"}))
            (folder / "processor_config.json").write_text("{}")
            (folder / "preprocessor_config.json").write_text(json.dumps({"size": 4}))
        union = "\ntokenizer: {source: union, tokens: {<|new|>: {source: {kind: zero}}}}" if rebuilt else ""
        folder = self.merged(pair, tmp_path, setting + union)
        expected = CHAT_TEMPLATES["chatml"] if setting else "VLM"
        assert ProcessorMixin.get_processor_dict(folder)[0]["chat_template"] == expected
        assert json.loads((folder / "preprocessor_config.json").read_text()) == {"size": 4}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == (CHAT_TEMPLATES["chatml"] if setting else OLD)
        assert ("<|new|>" in tokenizer.get_vocab()) == rebuilt

    def test_processor_and_generation_files_are_written_without_a_tokenizer_too(self, pair, tmp_path):
        (pair["a"] / "preprocessor_config.json").write_text("{}")
        (pair["a"] / "generation_config.json").write_text(json.dumps({"max_length": 7}))
        folder = self.merged(pair, tmp_path, "", copy_tokenizer=False)
        assert json.loads((folder / "generation_config.json").read_text()) == {"max_length": 7}
        assert (folder / "preprocessor_config.json").is_file()
        assert not (folder / "tokenizer_config.json").exists()

    def test_templates_with_names_are_copied(self, pair, tmp_path):
        (pair["a"] / "additional_chat_templates").mkdir()
        (pair["a"] / NAMED).write_text(TOOLS)
        (pair["a"] / "chat_template.jinja").write_text(OLD)
        folder = self.merged(pair, tmp_path, "chat_template: auto")
        assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": OLD, "tool_use": TOOLS}
