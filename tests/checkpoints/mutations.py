"""Ways to break a checkpoint, by name: each a function that changes a folder in place.

A folder holds config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors; an
adapter's holds adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path], None]
DEEP = 100_000
INDEX = "model.safetensors.index.json"


def put(name: str, content: str | bytes) -> Mutation:
    """Replaces a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None:
    return None


def cut(name: str, share: float) -> Mutation:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def edit(name: str, key: str, value: Any) -> Mutation:
    """Sets a dotted key of a JSON file."""

    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        holder, *_ = [data]
        *path, last = key.split(".")
        for part in path:
            holder = holder[int(part)] if isinstance(holder, list) else holder.setdefault(part, {})
        holder[int(last) if isinstance(holder, list) else last] = value
        (folder / name).write_text(json.dumps(data))

    return change


def raw(name: str, key: str, text: str) -> Mutation:
    """Sets a key of a JSON file to a text that json.dumps would not write."""

    def change(folder: Path) -> None:
        edit(name, key, "@@@")(folder)
        (folder / name).write_text((folder / name).read_text().replace('"@@@"', text))

    return change


def other(name: str, kind: str) -> Mutation:
    """Puts something that is no file in the place of a file."""

    def change(folder: Path) -> None:
        file = folder / name
        file.unlink(missing_ok=True)
        if kind == "folder":
            file.mkdir()
        elif kind == "pipe":
            os.mkfifo(file)
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "loop":
            file.symlink_to(file.name)
        elif kind == "dangling":
            file.symlink_to("nowhere")

    return change


def header(change: Callable[[dict[str, Any]], Any], name: str = "model.safetensors") -> Mutation:
    """Changes the header of a safetensors file; `change` may return a text or bytes to write in its place."""

    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + length])
        changed = change(entries)
        text = json.dumps(entries) if changed is None else changed
        text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def entry(key: str, value: Any, number: int = 0) -> Mutation:
    """Sets a field of one tensor in the header."""

    def change(entries: dict[str, Any]) -> None:
        names = [name for name in entries if name != "__metadata__"]
        entries[names[number]][key] = value

    return header(change)


def entry_raw(key: str, text: str) -> Mutation:
    def change(entries: dict[str, Any]) -> str:
        names = [name for name in entries if name != "__metadata__"]
        entries[names[0]][key] = "@@@"
        return json.dumps(entries).replace('"@@@"', text)

    return header(change)


def renamed(name: str) -> Mutation:
    """Renames the first tensor."""

    def change(entries: dict[str, Any]) -> None:
        first = next(n for n in entries if n != "__metadata__")
        entries[name] = entries.pop(first)

    return header(change)


def _shift(entries: dict[str, Any], by: int) -> None:
    last = max((n for n in entries if n != "__metadata__"), key=lambda n: entries[n]["data_offsets"][1])
    entries[last]["data_offsets"] = [n + by for n in entries[last]["data_offsets"]]


def _overlap(entries: dict[str, Any]) -> None:
    names = [n for n in entries if n != "__metadata__"]
    for first in names:
        for second in names:
            if first != second and entries[first]["shape"] == entries[second]["shape"]:
                entries[second]["data_offsets"] = entries[first]["data_offsets"]
                return


def _twice(entries: dict[str, Any]) -> str:
    text = json.dumps(entries)
    name = next(n for n in entries if n != "__metadata__")
    return text[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}"


def _dropped(entries: dict[str, Any]) -> None:
    entries.pop(next(n for n in entries if n != "__metadata__"))


def _hole(folder: Path) -> None:
    header(lambda entries: _shift(entries, 64))(folder)
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0" * 64)


def _tail(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"\0" * 64)


def _length(value: int) -> Mutation:
    def change(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", value) + data[8:])

    return change


def sharded(weight_map: Any) -> Mutation:
    """Moves the weights into one shard with an index; `weight_map` None: the right one."""

    def change(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        names = [n for n in json.loads(data[8 : 8 + length]) if n != "__metadata__"]
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        whole = dict.fromkeys(names, "shard.safetensors")
        value = weight_map(whole) if callable(weight_map) else whole if weight_map is None else weight_map
        (folder / INDEX).write_text(json.dumps({"weight_map": value}))

    return change


def both(*mutations: Mutation) -> Mutation:
    def change(folder: Path) -> None:
        for mutation in mutations:
            mutation(folder)

    return change


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
              "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json")  # fmt: skip
TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "null": "null",
    "number": "1",
    "list": "[]",
    "text": '"x"',
    "unclosed": "{",
    "object": "{}",
    "latin1": b'{"a": "\xe9"}',
    "utf16": '{"a": 1}'.encode("utf-16"),
    "nul": b"\0" * 64,
    "deep list": nested(DEEP),
    "deep mapping": '{"a":' * DEEP + "1" + "}" * DEEP,
    "deep inside": '{"a":' + nested(300) + "}",
    "digits": '{"a": ' + "9" * 6000 + "}",
    "infinity": '{"a": Infinity, "b": 10e400}',
}
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "text": "x",
    "number": 5,
    "negative": -1,
    "float": 1.5,
    "huge": 10**30,
    "billion": 10**9,
    "list": [],
    "mapping": {},
    "nested": [[["x"]]],
}
CONFIG_KEYS = ("model_type", "text_config", "id2label", "num_labels", "num_hidden_layers", "vocab_size", "hidden_size",
               "max_position_embeddings", "num_attention_heads", "tie_word_embeddings", "architectures", "auto_map",
               "rope_parameters", "eos_token_id", "layer_types", "dtype")  # fmt: skip
KINDS = ("folder", "pipe", "device", "loop", "dangling")


def models() -> dict[str, Mutation]:
    """Mutations of a model folder."""
    found: dict[str, Mutation] = {}
    for file in JSON_FILES:
        found |= {f"{file}: {name}": put(file, text) for name, text in TEXTS.items()}
        found |= {f"{file}: {kind}": other(file, kind) for kind in KINDS}
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        found[f"{file}: cut"] = cut(file, 0.5)
    for key in CONFIG_KEYS:
        found |= {f"config {key}: {name}": edit("config.json", key, value) for name, value in VALUES.items()}
    found |= _tokenizers() | _templates() | _headers() | _indices()
    for kind in KINDS:
        found[f"weights: {kind}"] = other("model.safetensors", kind)
        found[f"template: {kind}"] = other("chat_template.jinja", kind)
        found[f"stray adapter: {kind}"] = other("adapter_config.json", kind)
    found["config: experts"] = edit("config.json", "vision_config.num_experts", 10**9)
    found["config: no such type"] = edit("config.json", "model_type", "no-such-model")
    found["config: code"] = both(
        edit("config.json", "model_type", "own"), edit("config.json", "auto_map", {"AutoConfig": "own.Own"})
    )
    found["generation: text"] = edit("generation_config.json", "temperature", "hot")
    found["generation: list"] = edit("generation_config.json", "eos_token_id", [[1], {"a": 1}, None])
    return found


def _tokenizers() -> dict[str, Mutation]:
    file = "tokenizer.json"
    found = {f"tokenizer {key}: {name}": edit(file, key, value) for name, value in VALUES.items()
             for key in ("model", "model.vocab", "model.type", "added_tokens", "pre_tokenizer", "decoder")}  # fmt: skip
    found |= {f"tokenizer added: {name}": edit(file, "added_tokens", [value]) for name, value in VALUES.items()}
    found |= {f"tokenizer id: {name}": edit(file, "model.vocab.a", value) for name, value in VALUES.items()}
    found |= {f"tokenizer added id: {name}": edit(file, "added_tokens.0.id", v) for name, v in VALUES.items()}
    found["tokenizer added: no content"] = edit(file, "added_tokens", [{"id": 1}])
    found["tokenizer added: content a number"] = edit(file, "added_tokens", [{"id": 1, "content": 5}])
    found["tokenizer: unigram"] = edit(file, "model", {"type": "Unigram", "vocab": [["a", 0.0], []], "unk_id": 0})
    found["tokenizer: pattern"] = edit(file, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}})

    def slow(name: str, content: str | bytes) -> Mutation:
        """Files of a tokenizer without tokenizer.json."""
        return both(lambda folder: (folder / file).unlink(), put("vocab.json", '{"a": 0}'), put(name, content))

    for name, text in {"ids": '{"a": "x"}', "list": "[]", "languages": '{"de": {"a": 0}}', "none": "{}"}.items():
        found[f"vocab.json: {name}"] = slow("vocab.json", text)
    found["merges.txt: latin1"] = slow("merges.txt", b"\xe9 a")
    found["vocab.txt: latin1"] = slow("vocab.txt", b"\xe9")
    found["tokenizer.model: garbage"] = slow("tokenizer.model", b"\0" * 99)
    for key in ("tokenizer_class", "eos_token", "added_tokens_decoder", "extra_special_tokens", "model_max_length",
                "auto_map"):  # fmt: skip
        name = "tokenizer_config.json"
        found |= {f"tokenizer_config {key}: {what}": edit(name, key, value) for what, value in VALUES.items()}
    return found


def _templates() -> dict[str, Mutation]:
    jinja = "chat_template.jinja"
    return {
        "template: latin1": put(jinja, b"\xe9"),
        "template: syntax": put(jinja, "{% if %}"),
        "template: unclosed": put(jinja, "{% for m in messages %}"),
        "template: unknown tag": put(jinja, "{% frob %}"),
        "template: unknown filter": put(jinja, "{{ messages | frob }}"),
        "template: deep": put(jinja, "{{ " + nested(5000, "(", ")") + " }}"),
        "template: product": put(jinja, "{{ 'x' * 10000000000 }}"),
        "template: power": put(jinja, "{{ 9**(9**9) }}"),
        "template: number": edit("tokenizer_config.json", "chat_template", 5),
        "template: list": edit("tokenizer_config.json", "chat_template", [1]),
        "template: named": edit("tokenizer_config.json", "chat_template", [{"name": "default", "template": 5}]),
        "template: nameless": edit("tokenizer_config.json", "chat_template", [{}]),
        "template: in config": edit("tokenizer_config.json", "chat_template", "{% if %}"),
        "template: json": put("chat_template.json", "["),
    }


def _headers() -> dict[str, Mutation]:
    found = {}
    for key in ("dtype", "shape", "data_offsets"):
        found |= {f"header {key}: {name}": entry(key, value) for name, value in VALUES.items()}
    for key in ("shape", "data_offsets"):
        for name, value in {"text": ["64", 16], "float": [64.5, 16.0], "bool": [True, True], "negative": [-1, -16],
                            "huge": [2**63, 2**63], "null": [None, None], "many": [1] * 200}.items():  # fmt: skip
            found[f"header {key} of {name}"] = entry(key, value)
        found[f"header {key}: infinity"] = entry_raw(key, "[Infinity, 10e400]")
        found[f"header {key}: digits"] = entry_raw(key, f"[0, {'9' * 6000}]")
    found |= {
        "header: overlap": header(_overlap),
        "header: hole": _hole,
        "header: past the end": header(lambda e: _shift(e, 1 << 40)),
        "header: shifted": header(lambda e: _shift(e, 4)),
        "header: twice": header(_twice),
        "header: dropped": header(_dropped),
        "header: bytes behind": _tail,
        "header: empty": header(lambda e: "{}"),
        "header: list": header(lambda e: "[]"),
        "header: null": header(lambda e: "null"),
        "header: deep": header(lambda e: nested(DEEP)),
        "header: deep inside": header(lambda e: '{"a":' * DEEP),
        "header: utf16": header(lambda e: json.dumps(e).encode("utf-16")),
        "header: bom": header(lambda e: b"\xef\xbb\xbf" + json.dumps(e).encode()),
        "header: latin1": header(lambda e: b'{"\xe9": 1}'),
        "header: no entries": header(lambda e: e.update({"x": 1})),
        "header: empty entry": header(lambda e: e.update({"x": {}})),
        "header: metadata a list": header(lambda e: e.update({"__metadata__": []})),
        "header: metadata of numbers": header(lambda e: e.update({"__metadata__": {"a": 1}})),
        "header: empty tensor": header(
            lambda e: e.update({"x": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}})
        ),
        "header: other dtype": header(lambda e: e[min(e)].update({"dtype": "F4"})),
        "header length: 0": _length(0),
        "header length: huge": _length(2**63),
        "header length: 99 MB": _length(99_000_000),
        "name: empty": renamed(""),
        "name: escape": renamed("model.\x1b[31mred\x1b]0;title\x07"),
        "name: newline": renamed("a\nb"),
        "name: surrogate": header(lambda e: json.dumps({"\ud800": e[next(n for n in e if n != "__metadata__")]})),
        "name: long": renamed("x" * 100_000),
        "name: number": renamed("model.layers." + "9" * 900 + ".x.weight"),
        "name: zeros": renamed("model.layers.000.x.weight"),
        "name: other digits": renamed("model.layers.\u0663.x.weight"),
        "name: dots": renamed("....weight"),
        "scalar embeddings": header(_scalar),
    }
    return found


def _scalar(entries: dict[str, Any]) -> None:
    tensor = entries["model.embed_tokens.weight"]
    count = 1
    for n in tensor["shape"]:
        count *= n
    tensor["shape"] = [count]


def _indices() -> dict[str, Mutation]:
    found = {f"index: {name}": both(sharded(None), put(INDEX, text)) for name, text in TEXTS.items()}
    found |= {f"index map: {name}": sharded(value) for name, value in VALUES.items() if value is not None}
    found |= {f"index: {kind}": both(sharded(None), other(INDEX, kind)) for kind in KINDS}
    found |= {f"shard: {kind}": both(sharded(None), other("shard.safetensors", kind)) for kind in KINDS}

    def first(value: Any) -> Mutation:
        return sharded(lambda whole: {**whole, next(iter(whole)): value})

    for name, value in {"up": "../base/model.safetensors", "absolute": "/etc/passwd", "empty": "", "dot": ".",
                        "number": 5, "null": None, "nul": "a\0b", "escape": "\x1b[31m.safetensors", "hidden": ".x",
                        "absent": "absent.safetensors", "itself": INDEX, "long": "x" * 5000}.items():  # fmt: skip
        found[f"index names: {name}"] = first(value)
    found["index: unknown tensor"] = sharded(lambda whole: {**whole, "x": "shard.safetensors"})
    found["index: fewer tensors"] = sharded(lambda whole: dict(list(whole.items())[:3]))
    return found


def adapters() -> dict[str, Mutation]:
    """Mutations of an adapter folder."""
    config, found = "adapter_config.json", dict[str, Mutation]()
    found |= {f"adapter: {name}": put(config, text) for name, text in TEXTS.items()}
    for file in (config, "adapter_model.safetensors"):
        found |= {f"{file}: {kind}": other(file, kind) for kind in KINDS}
    for key in ("r", "lora_alpha", "base_model_name_or_path", "revision", "peft_type", "rank_pattern", "alpha_pattern",
                "target_modules", "layers_pattern", "trainable_token_indices", "use_rslora", "init_lora_weights",
                "modules_to_save"):  # fmt: skip
        found |= {f"adapter {key}: {name}": edit(config, key, value) for name, value in VALUES.items()}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = {
            "backtracking": {r"((\w|\.)+)+!": 4},
            # regex knows how to end the first one early
            "more backtracking": {r"(?:(\w|\.)+\3*)+[!?]": 4},
            "unclosed": {"(": 4},
            "no group": {"\\9": 4},
            "repeats": {"(?:(?:a{9999}){9999}){9999}": 4},
            "deep": {"(" * 5000 + ")" * 5000: 4},
            "long": {"a" * 100_000: 4},
            "empty": {"": 4},
            "text": {"q_proj": "4"},
            "zero": {"q_proj": 0},
            "null": {"q_proj": None},
            "recursive": {"(?R)": 4},
        }
        found |= {f"adapter {key} {name}": edit(config, key, value) for name, value in patterns.items()}
    for name, value in {"no such user": "~nosuchuser", "itself": ".", "nul": "a\0b", "plus": "+", "pluses": "a+b+c",
                        "at": "@", "long": "x" * 10_000, "device": "/dev/zero",
                        "escape": "\x1b[31m"}.items():  # fmt: skip
        found[f"adapter base: {name}"] = edit(config, "base_model_name_or_path", value)
    found["adapter alpha: 10e400"] = raw(config, "lora_alpha", "10e400")
    found["adapter alpha: digits"] = raw(config, "lora_alpha", "1" + "0" * 400)
    found["adapter alpha: nan"] = raw(config, "lora_alpha", "NaN")
    found["adapter weights: cut"] = cut("adapter_model.safetensors", 0.5)
    weights = "adapter_model.safetensors"
    found["adapter weights: overlap"] = header(_overlap, weights)
    found["adapter weights: dropped"] = header(_dropped, weights)
    found["adapter weights: empty"] = header(lambda e: "{}", weights)
    found["adapter weights: deep"] = header(lambda e: nested(DEEP), weights)
    found["adapter is its own base"] = lambda folder: edit(config, "base_model_name_or_path", str(folder))(folder)
    return found


def folders() -> dict[str, Mutation]:
    """Mutations of the folder itself."""

    def replaced(make: Callable[[Path], None]) -> Mutation:
        return lambda folder: (shutil.rmtree(folder), make(folder))[1]

    return {
        "folder: gone": replaced(lambda folder: None),
        "folder: empty": replaced(lambda folder: folder.mkdir()),
        "folder: file": replaced(lambda folder: void(folder.write_text("x"))),
        "folder: pipe": replaced(lambda folder: os.mkfifo(folder)),
        "folder: link to itself": replaced(lambda folder: folder.symlink_to(folder.name)),
        "folder: link to a device": replaced(lambda folder: folder.symlink_to("/dev/zero")),
    }
