"""The endpoint for programs, with a stand-in for vLLM behind it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from evomerge.recipe.recipe import Recipe
from evomerge.scoring.serving.engine import ServingEngine
from tests.scoring.serving.fake_vllm import write_fake
from tests.scoring.serving.test_engine import candidates, engine_of, say  # noqa: F401 (a fixture)

Candidates = dict[str, tuple[Recipe, str]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[ServingEngine]:
    packages = tmp_path_factory.mktemp("packages")
    write_fake(packages)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        made = engine_of(tiny_models)
        yield made
        made.close()


@pytest.fixture
def url(engine: ServingEngine, candidates: Candidates) -> str:  # noqa: F811
    """The address, with a candidate behind it."""
    engine.become(*candidates["half"])
    return engine.url()


def post(url: str, path: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]
    return text if text.startswith("data: ") else json.loads(text)


def test_it_listens_on_the_loopback_and_names_its_model(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{url}/models", timeout=60) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["candidate"]


def test_completions(url: str) -> None:
    found = post(url, "completions", {"model": "any", "prompt": ["one", "two"], "max_tokens": 4})
    assert [choice["text"].split()[0] for choice in found["choices"]] == ["one", "two"]
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert found["choices"][0]["finish_reason"] == "length"


def test_conversations(url: str) -> None:
    asked = {"messages": [{"role": "user", "content": "abc"}], "n": 2, "temperature": 0, "tools": [{"name": "look"}]}
    found = post(url, "chat/completions", asked)
    assert [choice["message"]["content"] for choice in found["choices"]] == ["cba", "cba"]
    streamed = post(url, "chat/completions", {**asked, "stream": True, "n": 1})
    first, end = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
    assert json.loads(first)["choices"][0]["delta"] == {"role": "assistant", "content": "cba"}
    assert end == "[DONE]"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("completions", {"prompt": 3}, "prompt: give a text"),
        ("completions", {"prompt": [True]}, "prompt: give a text"),
        ("completions", {"prompt": [[1], [False]]}, "prompt: give a text"),
        ("completions", {"prompt": "a", "echo": True}, "echo: not known here"),
        ("completions", {"prompt": "a", "beams": 3}, "beams: not known here"),
        ("completions", {"prompt": "a", "seed": 2**70}, "seed: give a whole number"),
        ("completions", {"prompt": "a", "max_tokens": True}, "max_tokens: give a whole number"),
        ("completions", {"prompt": "a", "temperature": True}, "temperature: give a number"),
        ("completions", {"prompt": "a", "top_p": float("nan")}, "top_p: give a number"),
        ("completions", {"prompt": "a", "stop": [5]}, "stop: give a text"),
        ("completions", {"prompt": "long"}, "longer than the model reads"),
        ("chat/completions", {"messages": []}, "messages: give a list"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
            "content that is no text",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"chat_template": "{{1}}"}},
            "chat_template",
        ),
        ("chat/completions", [1], "give a JSON object"),
        ("completions", b"{", "Expecting"),
        ("completions", b'{"prompt": ' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_what_cannot_be_answered(url: str, path: str, body: Any, told: str) -> None:
    code, message = post(url, path, body)
    assert code == 400
    assert told in message


def test_another_address(url: str) -> None:
    assert post(url, "embeddings", {})[0] == 404


def test_a_wrong_request_spoils_no_other(url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        prompts = [f"p{i}" if i % 4 else "long" for i in range(32)]
        answers = list(pool.map(lambda prompt: post(url, "completions", {"prompt": prompt}), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt == "long":
            assert answer[0] == 400
        else:
            assert answer["choices"][0]["text"].startswith(f"{prompt} ")


def test_it_answers_with_the_candidate_of_the_moment(
    url: str,
    engine: ServingEngine,
    candidates: Candidates,  # noqa: F811
) -> None:
    def answer() -> str:
        return str(post(url, "completions", {"prompt": "p"})["choices"][0]["text"])

    half = answer()
    engine.become(*candidates["whole"])
    assert engine.url() == url
    assert answer() != half
    assert say(engine) == answer().split()[1]


def test_where_the_engine_dies(url: str, engine: ServingEngine) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        post(url, "completions", {"prompt": "die"})
    again = engine.url()
    assert post(again, "completions", {"prompt": "p"})["choices"]


def test_what_vllm_cannot_be_sent_is_refused(url: str) -> None:
    half = b'{"prompt": "a", "stop": "\\ud800"}'
    assert post(url, "completions", half) == (400, "a text has half of a character (a lone surrogate)")
    talk = {"messages": [{"role": "user", "content": "a"}]}
    assert post(url, "chat/completions", {**talk, "chat_template_kwargs": 5})[1].startswith("chat_template_kwargs:")
    assert post(url, "chat/completions", {**talk, "tools": {"a": 1}})[1].startswith("tools:")


def test_a_request_that_failed_is_not_waited_for(url: str) -> None:
    assert post(url, "completions", {"prompt": "left"})[0] == 400
    assert post(url, "completions", {"prompt": "one"})["choices"]
