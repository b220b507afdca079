"""An OpenAI-compatible endpoint on this machine's loopback, for programs that score a candidate by asking it.

Requests that wait are answered together, by the engine's own process: it runs vLLM in one thread. Known are
`/v1/models`, `/v1/completions` and `/v1/chat/completions`, with `n`, `stop`, `seed`, `stream` and the settings of
sampling; what else is asked for is refused by name (https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

MODEL = "candidate"
"""What the model is called; any other name is taken for it, too."""

_MOST_BYTES = 16 << 20
"""Of a request."""

_PATIENCE = 3600.0
"""Seconds that an answer may take."""

_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty")
_LIMITS = ("max_completion_tokens", "max_tokens")
_WHOLE = {*_LIMITS, "top_k", "seed", "n"}
_NUMBERS = {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"}
_KNOWN = {*_SETTINGS, *_LIMITS, "model", "n", "stream", "stream_options", "user", "best_of", "logprobs", "echo"}
_OF_TEXT, _OF_CHAT = {*_KNOWN, "prompt"}, {*_KNOWN, "messages", "tools", "chat_template_kwargs"}
_SHORT = 16
"""Tokens of a completion where the request says nothing, as OpenAI has it."""


class Refused(Exception):
    """A request that cannot be answered, with the reason."""


@dataclass
class Asked:
    """A request that waits for its answer.

    Attributes:
        chat: whether it holds a conversation.
        prompts: texts, tokens, or the one conversation.
        limit: the most tokens of an answer; None: as many as fit.
        settings: of sampling, as `SamplingParams` takes them.
        extra: of a conversation, what its template gets.
        done: set once `answer` or `refused` is there.
    """

    chat: bool
    prompts: Sequence[Any]
    limit: int | None
    settings: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    done: Event = field(default_factory=Event)
    answer: list[Any] | None = None
    refused: str = ""

    @property
    def group(self) -> str:
        """Requests of one group are answered together."""
        return json.dumps([self.chat, self.extra], sort_keys=True, default=str)


class _Server(ThreadingHTTPServer):
    """One that takes many requests at a time: with Python's own queue, of five connections, others may be reset."""

    request_queue_size = 1024
    daemon_threads = True


class Endpoint:
    """Takes requests on a port of the loopback, and keeps them until `answer` is called.

    Attributes:
        url: where it is reached.
        waiting: a descriptor that can be read while requests wait.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self.waiting, self._wake = os.pipe()
        server = _Server(("127.0.0.1", 0), _handler(self))  # any free port
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        Thread(target=server.serve_forever, daemon=True).start()

    def ask(self, asked: Asked) -> list[Any]:
        """Waits until a request is answered; called by the server's threads. Raises Refused."""
        self._asked.put(asked)
        os.write(self._wake, b"1")
        if not asked.done.wait(_PATIENCE):
            raise Refused("it took too long")
        if asked.answer is None:
            raise Refused(asked.refused)
        return asked.answer

    def answer(self, llm: Any) -> None:
        """Answers all requests that wait, with vLLM's `LLM`."""
        groups: dict[str, list[Asked]] = {}
        os.read(self.waiting, 1 << 16)
        while not self._asked.empty():
            asked = self._asked.get()
            groups.setdefault(asked.group, []).append(asked)
        for group in groups.values():
            _answer(llm, group)


def _answer(llm: Any, group: Sequence[Asked]) -> None:
    """Answers requests together; where that fails, each by itself, so that a wrong one spoils no other."""
    try:
        pairs = [(prompt, _parameters(llm, asked)) for asked in group for prompt in asked.prompts]
        prompts, parameters = [prompt for prompt, _ in pairs], [settings for _, settings in pairs]
        if group[0].chat:
            found = llm.chat(prompts, parameters, use_tqdm=False, **group[0].extra)
        else:
            found = llm.generate(prompts, parameters, use_tqdm=False)
    except Exception as error:
        give_up(llm)
        if len(group) > 1 and type(error).__name__ != "EngineDeadError":
            for asked in group:
                _answer(llm, [asked])
            return
        for asked in group:
            asked.refused = f"{type(error).__name__}: {error}"
            asked.done.set()
        if type(error).__name__ == "EngineDeadError":
            raise
        return
    at = 0
    for asked in group:
        asked.answer = found[at : at + len(asked.prompts)]
        at += len(asked.prompts)
        asked.done.set()


def give_up(llm: Any) -> None:
    """Has vLLM forget the requests that an error has left behind: the next call would wait for them for ever."""
    engine = getattr(llm, "llm_engine", None)
    states = getattr(getattr(engine, "output_processor", None), "request_states", None)
    if engine is not None and states:
        engine.abort_request(list(states), True)


def _parameters(llm: Any, asked: Asked) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=asked.limit, **asked.settings)


def read(body: Mapping[str, Any], chat: bool) -> Asked:
    """A request of `/v1/completions`, or of `/v1/chat/completions`. Raises Refused."""
    known = _OF_CHAT if chat else _OF_TEXT
    unknown = sorted(key for key, value in body.items() if key not in known and value is not None)
    if unknown:
        raise Refused(f"{', '.join(unknown)}: not known here")
    for key in ("logprobs", "echo", "best_of"):
        if body.get(key) not in (None, False, 0, 1) or body.get(key) is True:
            raise Refused(f"{key}: not known here")
    _check_texts(body)
    for key, value in body.items():
        _check(key, value)
    settings = {key: body[key] for key in _SETTINGS if body.get(key) is not None}
    settings["n"] = body.get("n") or 1
    limits = [body[key] for key in _LIMITS if body.get(key) is not None]
    if not chat:
        return Asked(False, _prompts(body.get("prompt")), limits[0] if limits else _SHORT, settings)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refused("messages: give a list of objects with role and content")
    if not all(_is_text(message.get("content")) for message in messages):
        raise Refused("messages: content that is no text is not known here")  # vLLM would fetch it
    if "chat_template" in (body.get("chat_template_kwargs") or {}):
        raise Refused("chat_template: it is the candidate's")
    extra = {key: body[key] for key in ("tools", "chat_template_kwargs") if body.get(key)}
    return Asked(True, [messages], limits[0] if limits else None, settings, extra)


def _check_texts(body: Mapping[str, Any]) -> None:
    """Raises Refused where a text has half of a character: vLLM's core cannot be sent it."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused("a text has half of a character (a lone surrogate)") from None


def _is_text(content: Any) -> bool:
    """Whether a message holds text only."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)


def _check(key: str, value: Any) -> None:
    """Raises Refused where a value is of the wrong type. vLLM would say so of some; of others its core would end, or
    the next request wait for ever."""
    if value is None:
        return
    if key in _WHOLE and not (_is_token(value) and abs(value) < 1 << 63):
        raise Refused(f"{key}: give a whole number")
    if key in _NUMBERS and not (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9):
        raise Refused(f"{key}: give a number")
    texts = value if isinstance(value, list) else [value]
    if key == "stop" and not all(isinstance(text, str) for text in texts):
        raise Refused("stop: give a text, or a list of texts")
    if key == "chat_template_kwargs" and not isinstance(value, dict):
        raise Refused("chat_template_kwargs: give an object")
    if key == "tools" and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
        raise Refused("tools: give a list of objects")


def _prompts(given: Any) -> list[Any]:
    """The prompts of a completion: a text or several, each as text or as tokens."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(map(_is_token, given)):
            return [{"prompt_token_ids": given}]
        if all(isinstance(one, str) for one in given):
            return given
        if all(isinstance(one, list) and one and all(map(_is_token, one)) for one in given):
            return [{"prompt_token_ids": one} for one in given]
    raise Refused("prompt: give a text, or a list of texts")


def _is_token(value: Any) -> bool:
    """Whether this is a whole number. True and False are none, and vLLM's core ends at them."""
    return isinstance(value, int) and not isinstance(value, bool)


def written(asked: Asked, outputs: Sequence[Any]) -> dict[str, Any]:
    """The answer as OpenAI writes it."""
    choices: list[dict[str, Any]] = []
    for output in outputs:
        for said in output.outputs:
            what = {"message": {"role": "assistant", "content": said.text}} if asked.chat else {"text": said.text}
            choices.append({"index": len(choices), **what, "finish_reason": said.finish_reason, "logprobs": None})
    read_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    wrote = sum(len(said.token_ids) for output in outputs for said in output.outputs)
    return {
        "id": f"evomerge-{time.time_ns()}",
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": choices,
        "usage": {"prompt_tokens": read_tokens, "completion_tokens": wrote, "total_tokens": read_tokens + wrote},
    }


def _chunks(answer: dict[str, Any]) -> str:
    """The answer as a stream of one event, and its end."""
    choices = [
        {
            **{key: value for key, value in c.items() if key != "message"},
            **({"delta": c["message"]} if "message" in c else {}),
        }
        for c in answer["choices"]
    ]
    kind = answer["object"].replace("chat.completion", "chat.completion.chunk")
    return f"data: {json.dumps({**answer, 'object': kind, 'choices': choices})}\n\ndata: [DONE]\n\n"


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path.rstrip("/") == "/v1/models":
                self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "evomerge"}]})
            else:
                self._fail(404, f"nothing is at {self.path}")

        def do_POST(self) -> None:
            chat = {"/v1/completions": False, "/v1/chat/completions": True}.get(self.path.partition("?")[0])
            try:
                count = int(self.headers.get("Content-Length") or 0)
                if not 0 <= count <= _MOST_BYTES:
                    self.close_connection = True
                    raise Refused(f"a request has at most {_MOST_BYTES} bytes")
                body = json.loads(self.rfile.read(count) or b"null")
                if chat is None:
                    self._fail(404, f"nothing is at {self.path}")
                    return
                if not isinstance(body, dict):
                    raise Refused("give a JSON object")
                asked = read(body, chat)
                answer = written(asked, endpoint.ask(asked))
            except RecursionError:
                self._fail(400, "the JSON is nested too deep")
                return
            except (Refused, ValueError) as error:
                self._fail(400, str(error))
                return
            if body.get("stream"):
                self._write(200, "text/event-stream", _chunks(answer))
            else:
                self._send(200, answer)

        def _fail(self, code: int, message: str) -> None:
            self._send(code, {"error": {"message": message, "type": "invalid_request_error", "code": code}})

        def _send(self, code: int, data: Any) -> None:
            self._write(code, "application/json", json.dumps(data))

        def _write(self, code: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
