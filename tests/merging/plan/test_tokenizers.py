"""Models of different vocabularies: what the output's is, what every row becomes, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.checkpoints.chat_templates import CHAT_TEMPLATES
from evomerge.checkpoints.vocabulary import Vocabulary, load_tokenizer
from evomerge.errors import InputError
from evomerge.merging.disk.stream import merge
from evomerge.merging.plan.alignment import Owner, _align, _own_rows, _Rule
from evomerge.merging.plan.jobs import Read, RebuiltMatrix, TensorRef
from evomerge.merging.plan.plan import plan
from evomerge.merging.plan.tokenizers import output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.recipe.mergekit import parse_recipe

PARITY = Path(__file__).parents[3].parent / "shared" / "parity"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(17))]


class TestParity:
    """mergekit 0.1.5's outputs, which lie beside the checkout."""

    pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason="the reference outputs are not here")

    @pytest.mark.parametrize("case", ["tokenizer_base", "tokenizer_model", "tokenizer_union"])
    def test_every_row_agrees(self, case, tmp_path, monkeypatch):
        monkeypatch.chdir(PARITY / "models")
        folder = merge(PARITY / "cases" / f"{case}.yml", tmp_path / "out")
        expected, found = load_file(PARITY / "expected" / f"{case}.safetensors"), tiny_models.read(folder)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].shape == tensor.shape
            assert float((found[name] - tensor).abs().max()) <= 1e-6 * float(tensor.abs().max()), name
        rows = expected[EMBEDDING].shape[0]
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows
        donor = "base" if case == "tokenizer_base" else "ft_sku"
        tokens = load_tokenizer(folder).get_vocab()
        assert tokens == load_tokenizer(PARITY / "models" / donor).get_vocab()
        assert len(tokens) == rows


def write(folder, words, seed, **changes):
    """A model over `words`; its rows are numbered, so that they can be told apart."""
    tensors = tiny_models.base_tensors(seed, vocab=len(words))
    for name in (EMBEDDING, HEAD):
        tensors[name] = seed * 100.0 + torch.arange(float(len(words)))[:, None].repeat(1, tiny_models.HIDDEN)
    return tiny_models.write(folder, tensors, tokens=words, vocab_size=len(words), **changes)


@pytest.fixture
def pair(tmp_path):
    """`a` over the common words, `b` with two of its own, one less, and one moved."""
    (tmp_path / "b").mkdir()
    return {
        "a": write(tmp_path / "a", WORDS, 1, eos_token_id=2),
        "b": write(tmp_path / "b", ["<unk>", "</s>", "<s>", *WORDS[3:-1], "SKU", "NEW"], 2, eos_token_id=1),
    }


def recipe(pair, text, weights=(1, 0), base="a"):
    lines = "".join(
        f"- {{model: {pair[n]}, parameters: {{weight: {w}}}}}\n" for n, w in zip("ab", weights, strict=True)
    )
    for name, folder in pair.items():
        text = text.replace(f"<{name}>", str(folder))
    head = f"base_model: {pair[base]}\n" if base else ""
    return parse_recipe(f"merge_method: linear\n{head}models:\n{lines}{text}\n", "recipe.yaml")


def rows(pair, text, weights=(1, 0), name=EMBEDDING, base="a"):
    """Token -> the number that its row holds throughout."""
    bank, made = SourceBank(), recipe(pair, text, weights, base)
    planned = plan(made, bank.open)
    matrix = execute(planned.jobs[name], bank)
    assert bool((matrix == matrix[:, :1]).all())
    assert matrix.shape[0] == planned.config["vocab_size"]
    tokens = output_tokenizer(made.output, planned).load().get_vocab()
    return {token: float(matrix[i, 0]) for token, i in sorted(tokens.items(), key=lambda pair: pair[1])}


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_base_keeps_the_bases_tokens(pair, name):
    ours, theirs = (
        rows(pair, "tokenizer_source: base", (1, 0), name),
        rows(pair, "tokenizer_source: base", (0, 1), name),
    )
    assert ours == {token: 100.0 + i for i, token in enumerate(WORDS)}
    assert list(theirs.values()) == [200.0, 202.0, 201.0, *(203.0 + i for i in range(16)), 119.0]


def test_union_appends_what_the_others_have(pair):
    ours, theirs = rows(pair, "tokenizer_source: union", (1, 0)), rows(pair, "tokenizer_source: union", (0, 1))
    assert list(ours) == list(theirs) == [*WORDS, "SKU", "NEW"]
    assert (ours["SKU"], ours["NEW"]) == (theirs["SKU"], theirs["NEW"]) == (219.0, 220.0)
    assert theirs["w16"] == 119.0  # the only owner's
    assert theirs["</s>"] == 201.0


def test_a_model_gives_its_tokenizer_and_ids_follow_their_tokens(pair, tmp_path):
    (pair["a"] / "generation_config.json").write_text(json.dumps({"eos_token_id": [2], "bos_token_id": 1}))
    assert rows(pair, "tokenizer: {source: <b>}", (1, 0))["</s>"] == 102.0
    folder = merge(recipe(pair, "tokenizer: {source: <b>}"), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 1
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [1], "bos_token_id": 2}
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(pair["b"]).get_vocab()


def test_an_id_whose_token_is_gone_is_left_out(pair, tmp_path):
    config = json.loads((pair["a"] / "config.json").read_text())
    (pair["a"] / "config.json").write_text(json.dumps({**config, "pad_token_id": WORDS.index("w16")}))
    folder = merge(recipe(pair, "tokenizer: {source: <b>}"), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None


def test_rules_of_tokens(pair):
    text = """tokenizer:
  source: union
  tokens:
    SKU: {source: {kind: zero}}
    NEW: {source: {kind: model_token, model: <a>, token: w3}}
    w16: {source: {kind: model_token, model: <b>, token_id: 4}}
    w0: {source: <b>, force: true}
    ADDED: {source: {kind: model_token, model: <b>, token: NEW}}
    EMPTY: {}
"""
    ours, theirs = rows(pair, text, (1, 0)), rows(pair, text, (0, 1))
    assert list(ours)[-4:] == ["SKU", "NEW", "ADDED", "EMPTY"]
    assert (ours["SKU"], theirs["SKU"]) == (0.0, 219.0)  # a model keeps its own row
    assert (ours["NEW"], theirs["NEW"]) == (106.0, 220.0)
    assert (ours["w16"], theirs["w16"]) == (119.0, 204.0)
    assert ours["w0"] == theirs["w0"] == 203.0
    assert ours["ADDED"] == theirs["ADDED"] == 220.0
    assert ours["EMPTY"] == theirs["EMPTY"] == 0.0


def test_padding_is_the_mean_of_the_real_rows(pair):
    bank = SourceBank()
    planned = plan(recipe(pair, "tokenizer: {source: base, pad_to_multiple_of: 16}"), bank.open)
    matrix = execute(planned.jobs[EMBEDDING], bank)
    assert matrix.shape[0] == planned.config["vocab_size"] == 32
    assert torch.allclose(matrix[20:], matrix[:20].mean(0, keepdim=True).expand(12, -1))


def test_nothing_is_rebuilt_where_nothing_changes(models):
    both = {"a": models["a"], "b": models["b"]}
    planned = plan(recipe(both, "tokenizer_source: union"), SourceBank().open)
    assert all(isinstance(operand, Read) for job in planned.jobs.values() for operand in job.inputs)


def test_equal_plans_have_equal_keys(pair):
    keys = []
    for weights in ((1, 0), (0, 1)):
        job = plan(recipe(pair, "tokenizer_source: union", weights), SourceBank().open).jobs[EMBEDDING]
        assert all(isinstance(operand, RebuiltMatrix) for operand in job.inputs)
        keys.append([operand.key for operand in job.inputs])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 2
    other = plan(recipe(pair, "tokenizer_source: base"), SourceBank().open).jobs[EMBEDDING]
    assert not {o.key for o in other.inputs if isinstance(o, RebuiltMatrix)} & set(keys[0])


def test_a_model_without_a_tokenizer_has_the_bases(pair):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pair["b"] / name).unlink()
    assert rows(pair, "tokenizer_source: union", (0, 1)) == {token: 200.0 + i for i, token in enumerate(WORDS)}


def test_tokens_without_a_row_are_not_the_bases(tmp_path):
    """A BPE tokenizer with a token more than its model has rows, and a special token that it gets on loading (</s>)."""
    from tokenizers import Tokenizer, models

    folder = write(tmp_path / "a", WORDS[:5], 1)
    words = {w: i for i, w in enumerate(["<unk>", "a", "b", "ab", "c", "bc"])}
    Tokenizer(models.BPE(words, [("a", "b"), ("b", "c")], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    made = parse_recipe(f"merge_method: passthrough\ntokenizer_source: base\nmodels: [{{model: {folder}}}]\n")
    out = merge(made, tmp_path / "out")
    assert load_tokenizer(out).get_vocab() == {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "c": 4}
    assert load_tokenizer(out)("abc").input_ids == [3, 4]


def test_later_documents_have_the_vocabulary_of_earlier_ones(pair):
    first = (
        f"name: first\nmerge_method: linear\nbase_model: {pair['a']}\ntokenizer_source: union\n"
        f"parameters: {{weight: 1}}\nmodels: [{{model: {pair['a']}}}, {{model: {pair['b']}}}]\n"
    )
    last = "merge_method: linear\nparameters: {weight: 1}\n" + f"models: [{{model: first}}, {{model: {pair['a']}}}]\n"
    with pytest.raises(InputError, match="their vocabularies differ"):
        plan(parse_recipe(f"{first}---\n{last}"), SourceBank().open)
    bank = SourceBank()
    planned = plan(parse_recipe(f"{first}---\n{last}tokenizer_source: base\n"), bank.open)
    matrix = execute(planned.jobs[EMBEDDING], bank)
    assert planned.vocabulary.rows == matrix.shape[0] == 22
    assert float(matrix[WORDS.index("w16"), 0]) == 119.0
    assert float(matrix[20, 0]) == 219.0


class TestBad:
    def problem(self, pair, text, **options):
        with pytest.raises(InputError) as caught:
            plan(recipe(pair, text), SourceBank().open, **options)
        return str(caught.value)

    def test_sizes_differ_without_a_setting(self, pair):
        text = self.problem(pair, "")
        assert "model.embed_tokens.weight is [21, 16]" in text
        assert "[20, 16] in" in text
        assert "add tokenizer_source: union" in text
        assert text.startswith("recipe.yaml:5")

    def test_a_row_that_is_not_there(self, pair):
        rule = "tokenizer: {source: union, tokens: {SKU: {source: {kind: model_token, model: <a>, %s}}}}"
        assert "has no token 'x'" in self.problem(pair, rule % "token: x")
        assert "has no row 20" in self.problem(pair, rule % "token_id: 20")
        assert "has no token 'SKU'" in self.problem(pair, "tokenizer: {source: union, tokens: {SKU: {source: <a>}}}")

    def test_a_base_without_a_tokenizer(self, pair):
        (pair["a"] / "tokenizer.json").unlink()
        text = self.problem(pair, "tokenizer_source: base")
        assert text.startswith("recipe.yaml:6: tokenizer_source: ")
        assert "its tokenizer cannot be loaded" in text

    def test_truncation_is_an_opt_in(self, pair):
        bank = SourceBank()
        planned = plan(recipe(pair, "", (0, 1)), bank.open, truncate_embeddings=True)
        matrix = execute(planned.jobs[EMBEDDING], bank)
        assert matrix[:, 0].tolist() == [200.0 + i for i in range(20)]
        assert planned.config["vocab_size"] == 20


# The rule for rows, against the same rule written token by token.

OWN = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


def slowly(tokens, size, models, base, rules):
    """The matrices of all models, each a list of numbers, by the words of docs/merge.md."""
    made = []
    for own, matrix in models:
        rows = [0.0] * size
        for token, at in tokens.items():
            owners = [(t, m) for t, m in models if token in t]
            source, force = rules.get(at, (None, False))
            if token in own and not force:
                rows[at] = matrix[own[token]]
            elif source is not None:
                rows[at] = 0.0 if source < 0 else models[source][1][0]
            elif len(owners) == 1 or (base is not None and token in models[base][0]):
                t, m = owners[0] if len(owners) == 1 else models[base]
                rows[at] = m[t[token]]
            elif owners:
                rows[at] = sum(m[t[token]] for t, m in owners) / len(owners)
        real = [rows[i] for i in tokens.values()]
        made.append([rows[i] if i in tokens.values() else sum(real) / len(real) for i in range(size)])
    return made


@settings(max_examples=60, deadline=None)
@given(
    output=OWN, own=st.lists(OWN, min_size=1, max_size=4), base=st.sampled_from([None, 0]), padding=st.integers(0, 3),
    rule=st.one_of(st.none(), st.tuples(st.sampled_from([-1, 0]), st.booleans())),
)  # fmt: skip
def test_rows_follow_the_rule(output, own, base, padding, rule):
    tokens = {token: i for i, token in enumerate(output)}
    vocabularies = [Vocabulary(Path("/" + "".join(words))) for words in ([*output], *own)]
    known = {v: {t: i for i, t in enumerate(v.folder.name)} for v in vocabularies}
    matrices = [torch.arange(float(len(words)))[:, None] + 10.0 ** (n + 1) for n, words in enumerate(own)]
    owners = tuple(
        Owner(v, len(m), TensorRef(Read(str(n), ""), tuple(m.shape), "float32"))
        for n, (v, m) in enumerate(zip(vocabularies[1:], matrices, strict=True))
    )
    rules = () if rule is None else (_Rule(0, rule[0], 0, rule[1]),)
    size = len(output) + padding
    _own_rows.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vocabulary, "tokens", property(known.__getitem__))
        made = _align.__wrapped__(vocabularies[0], size, owners, base, rules, None)

    def fetch(operand):
        return matrices[int(operand.model)]

    found = [fetch(t.operand) if isinstance(t.operand, Read) else t.operand.build(fetch) for t in made]
    models = [(known[v], m[:, 0].tolist()) for v, m in zip(vocabularies[1:], matrices, strict=True)]
    expected = slowly(tokens, size, models, base, {r.token: (r.owner, r.force) for r in rules})
    for tensor, wanted in zip(found, expected, strict=True):
        assert tensor[:, 0].tolist() == pytest.approx(wanted, rel=1e-6)


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
}


@pytest.mark.parametrize("name", list(CHAT_TEMPLATES))
def test_well_known_chat_templates(models, name):
    text = f"merge_method: passthrough\nchat_template: {name}\nmodels: [{{model: {models['a']}}}]\n"
    made = parse_recipe(text)
    tokenizer = output_tokenizer(made.output, plan(made, SourceBank().open)).load()
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == RENDERED[name]


class TestTokenizerOfAFolder:
    """A tokenizer source that is no model: nothing but its tokenizer is read."""

    def test_a_folder_without_weights(self, pair, tmp_path):
        tokens = tmp_path / "tokens"
        tokens.mkdir()
        tiny_models.write_tokenizer(tokens, [*WORDS, "<|im_start|>"], chat_template="T {{ messages }}")
        folder = merge(recipe(pair, f"tokenizer_source: {tokens}"), tmp_path / "out")
        assert load_tokenizer(folder).get_vocab() == load_tokenizer(tokens).get_vocab()
        assert (folder / "chat_template.jinja").read_text() == "T {{ messages }}"
        merged = load_file(folder / "model.safetensors")[EMBEDDING]
        assert merged.shape[0] == len(WORDS) + 1
        assert float(merged[5, 0]) == 105.0
        assert float(merged[-1].abs().max()) == 0.0  # no model has it

    def test_a_model_that_cannot_be_merged(self, pair, tmp_path):
        quantized = write(tmp_path / "quantized", WORDS[:-1], 3, quantization_config={"quant_method": "gptq"})
        folder = merge(recipe(pair, f"tokenizer: {{source: {quantized}}}"), tmp_path / "out")
        assert len(load_tokenizer(folder).get_vocab()) == len(WORDS) - 1

    def test_a_hub_id_fetches_the_tokenizer_only(self, pair, tmp_path, monkeypatch):
        tokens, asked = tmp_path / "hub", {}
        tokens.mkdir()
        tiny_models.write_tokenizer(tokens, WORDS)

        def download(name, **settings):
            asked[name] = settings["allow_patterns"]
            return str(tokens)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        merge(recipe(pair, "tokenizer_source: org/tokens"), tmp_path / "out")
        assert "tokenizer.json" in asked["org/tokens"]
        assert not [pattern for pattern in asked["org/tokens"] if "safetensors" in pattern]

    def test_a_folder_without_tokenizer(self, pair, tmp_path):
        (tmp_path / "nothing").mkdir()
        with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
            merge(recipe(pair, f"tokenizer_source: {tmp_path / 'nothing'}"), tmp_path / "out")
        with pytest.raises(InputError, match="there is no folder"):
            merge(recipe(pair, f"tokenizer_source: {tmp_path / 'nowhere'}"), tmp_path / "out")

    def test_its_folder_is_not_written_over(self, pair, tmp_path):
        tokens = write(tmp_path / "tokens", WORDS, 4)
        with pytest.raises(InputError, match="is read and to be written"):
            merge(recipe(pair, f"tokenizer_source: {tokens}"), tokens, overwrite=True)


def _family(kind, folder):
    """Two models of a family whose tensors of tokens have other names, or another layout, than Llama's; the second has
    two tokens more, and one less."""
    import transformers

    settings = {
        "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
        "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "rotary_dim": 4},
        "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "forced_eos_token_id": 2,
                 "max_position_embeddings": 32},
    }[kind]  # fmt: skip
    tokens = {"a": WORDS, "b": [*WORDS[:-1], "SKU", "NEW"]}
    auto = transformers.AutoModelForSeq2SeqLM if kind == "bart" else transformers.AutoModelForCausalLM
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokens[name]), pad_token_id=0, **settings)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if kind == "bart":
                model.final_logits_bias += torch.arange(float(len(tokens[name]))) + 100 * seed
        model.save_pretrained(folder / name)
        tiny_models.write_tokenizer(folder / name, tokens[name])
    return auto, {name: folder / name for name in "ab"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mamba", {"backbone.embeddings.weight": 0}),
        ("gptj", {"transformer.wte.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0}),
        ("bart", {"model.shared.weight": 0, "final_logits_bias": 1}),
    ],
)
def test_union_of_other_families(kind, names, tmp_path):
    auto, folders = _family(kind, tmp_path)
    stored = {name: tiny_models.read(folder) for name, folder in folders.items()}
    assert set(names) <= set(stored["a"])
    folder = merge(recipe(folders, "tokenizer_source: union", (1, 1)), tmp_path / "out")
    merged, union = tiny_models.read(folder), load_tokenizer(folder).get_vocab()
    assert list(union) == list(dict.fromkeys([*WORDS, "SKU", "NEW"])) or len(union) == len(WORDS) + 2
    for name, axis in names.items():
        found = merged[name].movedim(axis, 0)
        a, b = (stored[n][name].movedim(axis, 0) for n in "ab")
        own = {"w3": (6, 6), "w16": (19, None), "SKU": (None, 19), "NEW": (None, 20)}
        for token, (i, j) in own.items():
            expected = a[i] if j is None else b[j] if i is None else (a[i] + b[j]) / 2
            assert torch.allclose(found[union[token]], expected, atol=1e-6), (name, token)
    _, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_without_a_policy_the_way_out_is_told(tmp_path):
    _, folders = _family("mamba", tmp_path)
    with pytest.raises(InputError, match="their vocabularies differ; add tokenizer_source: union"):
        merge(recipe(folders, ""), tmp_path / "out")


class TestSentencepiece:
    """`tokenizer.model`, which converters to GGUF read, and which transformers does not write."""

    @pytest.fixture
    def with_model(self, pair):
        for folder in pair.values():
            (folder / "tokenizer.model").write_bytes(b"pieces")
        return pair

    def test_it_stays_where_tokens_are_added(self, with_model, tmp_path):
        folder = merge(recipe(with_model, "tokenizer_source: union"), tmp_path / "out")
        assert (folder / "tokenizer.model").read_bytes() == b"pieces"
        assert json.loads((folder / "added_tokens.json").read_text()) == {"SKU": 20, "NEW": 21}
        assert load_tokenizer(folder).get_vocab()["NEW"] == 21

    def test_it_goes_where_tokens_do(self, with_model, tmp_path):
        """Its tokens would be more than the model has rows."""
        tokens = json.loads((with_model["a"] / "tokenizer.json").read_text())
        tokens["added_tokens"] = [
            {"id": len(WORDS), "content": "unused", "special": False, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False}
        ]  # fmt: skip
        (with_model["a"] / "tokenizer.json").write_text(json.dumps(tokens))
        folder = merge(recipe(with_model, "tokenizer_source: base"), tmp_path / "out")
        assert "unused" not in load_tokenizer(folder).get_vocab()
        assert not (folder / "tokenizer.model").exists()

    def test_files_of_other_families_are_copied(self, pair, tmp_path):
        for name in ("source.spm", "target.spm", "sentencepiece.bpe.model"):
            (pair["a"] / name).write_bytes(b"\xffpieces")
        folder = merge(recipe(pair, "tokenizer_source: base"), tmp_path / "out")
        assert all((folder / name).read_bytes() == b"\xffpieces" for name in ("source.spm", "sentencepiece.bpe.model"))
