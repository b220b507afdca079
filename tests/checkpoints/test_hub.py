"""Models on a hub, which a local server stands for: what is asked of it, and when."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import tiny_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name, and the requests for weights as they came: GET NAME RANGE."""

    address: str
    repositories: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def run(self, code: str, cache: Path, fails: bool = False) -> str:
        """Runs Python code in a process of its own, which reads the hub's address once."""
        env = {**os.environ, "HF_ENDPOINT": self.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=env, cwd=cache.parent, capture_output=True, text=True, timeout=120)
        assert (done.returncode != 0) is fails, done.stderr[-3000:]
        return done.stderr if fails else done.stdout


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if match := re.fullmatch(r"/api/models/(\w+/\w+)(/revision/\w+|/tree/\w+)?", path):
                files = sorted(f.name for f in hub.repositories[match[1]].iterdir())
                if "/tree/" in path:
                    sizes = {f: (hub.repositories[match[1]] / f).stat().st_size for f in files}
                    listed = [{"type": "file", "path": f, "size": s, "oid": "0" * 40} for f, s in sizes.items()]
                    return self.send(json.dumps(listed).encode(), body)
                told = {"id": match[1], "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                return self.send(json.dumps(told).encode(), body)
            match = re.fullmatch(r"/(\w+/\w+)/resolve/\w+/([\w.-]+)", path)
            assert match is not None, path
            data = (hub.repositories[match[1]] / match[2]).read_bytes()
            if match[2].endswith(".safetensors") and body:
                hub.asked.append(f"{match[2]} {self.headers.get('Range') or 'all'}")
            return self.send(data, body)

        def send(self, data: bytes, body: bool) -> None:
            part, asked = data, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked:
                stop = min(len(data), int(asked[2] or len(data) - 1) + 1)
                part = data[int(asked[1]) : stop]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


OPEN = "from evomerge.checkpoints.checkpoint import Checkpoint; c = Checkpoint.open('org/model@main')\n"


def test_only_headers_are_fetched_to_open_a_model(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"] = tiny_models.write(tmp_path / "repo", tiny_models.base_tensors())
    said = hub.run(OPEN + "print(c.resolved(), len(c.tensors), c.tokenizer_path.name)", tmp_path / "cache")
    assert said.split() == [f"org/model@{COMMIT}", str(len(tiny_models.shapes())), COMMIT]
    assert hub.asked == ["model.safetensors bytes=0-99999"]


def test_a_shard_arrives_when_a_tensor_of_it_is_read(hub: Hub, tmp_path: Path) -> None:
    tensors = tiny_models.base_tensors()
    hub.repositories["org/model"] = repo = tiny_models.write_sharded(tmp_path / "repo", tensors)
    shards = json.loads((repo / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.norm.weight"
    code = OPEN + f"before = c.seen; t = c.read({name!r}); print(t.tolist())\n"
    code += "from evomerge.checkpoints.identity import changed_file; print(changed_file([c]))"
    said = hub.run(code, tmp_path / "cache").splitlines()
    assert said == [str(tensors[name].tolist()), "None"]
    whole = [asked for asked in hub.asked if not asked.endswith("bytes=0-99999")]
    assert whole == [f"{shards[name]} all"]
    # Again, with the shard in the cache
    hub.asked.clear()
    assert hub.run(code, tmp_path / "cache").splitlines() == said
    assert [asked.split()[0] for asked in hub.asked] == sorted(set(shards.values()) - {shards[name]})


def test_the_fingerprint_is_that_of_a_local_copy(hub: Hub, tmp_path: Path) -> None:
    from evomerge.checkpoints.checkpoint import Checkpoint

    hub.repositories["org/model"] = repo = tiny_models.write_sharded(tmp_path / "repo", tiny_models.base_tensors())
    said = hub.run(OPEN + "print(c.fingerprint())", tmp_path / "cache")
    assert said.strip() == Checkpoint.open(str(repo)).fingerprint()


def test_a_long_header_is_fetched_in_two_parts(hub: Hub, tmp_path: Path) -> None:
    tensors = tiny_models.base_tensors()
    tensors |= {f"extra.{'x' * 900}.{i}": tensors["model.norm.weight"].clone() for i in range(120)}
    hub.repositories["org/model"] = tiny_models.write(tmp_path / "repo", tensors)
    assert hub.run(OPEN + "print(len(c.tensors))", tmp_path / "cache").strip() == str(len(tensors))
    assert len(hub.asked) == 2
    assert hub.asked[1].startswith("model.safetensors bytes=100000-")


def test_what_headers_show_is_said_before_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"] = tiny_models.write(
        tmp_path / "repo", tiny_models.base_tensors(), num_hidden_layers=9
    )
    assert "no numbered stack of 9 layers" in hub.run(OPEN, tmp_path / "cache", fails=True)
    assert hub.asked == ["model.safetensors bytes=0-99999"]


@pytest.mark.slow
def test_a_merge_of_models_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    base = tiny_models.base_tensors()
    for seed, name in enumerate(("model", "tuned")):
        tensors = tiny_models.tuned(base, seed, 0.02 * seed)
        hub.repositories[f"org/{name}"] = tiny_models.write_sharded(tmp_path / name, tensors)
    recipe = "merge_method: ties\nbase_model: BASE\nmodels: [{model: TUNED, parameters: {weight: 1, density: 0.5}}]\n"
    (tmp_path / "hub.yaml").write_text(recipe.replace("BASE", "org/model@main").replace("TUNED", "org/tuned@main"))
    (tmp_path / "local.yaml").write_text(recipe.replace("BASE", "./model").replace("TUNED", "./tuned"))
    code = "import evomerge; print(*(evomerge.merge(f'{n}.yaml', f'out_{n}') for n in ('hub', 'local')))"
    folders = [Path(folder) for folder in hub.run(code, tmp_path / "cache").split()]
    merged = [tiny_models.read(folder) for folder in folders]
    assert all(merged[0][name].equal(merged[1][name]) for name in base)
    assert sorted(asked for asked in hub.asked if asked.endswith("all")) == sorted(
        f"model-0000{i}-of-00002.safetensors all" for i in (1, 2) for _ in range(2)
    )


@pytest.mark.slow
def test_a_dry_run_goes_by_headers(hub: Hub, tmp_path: Path) -> None:
    base = tiny_models.base_tensors()
    hub.repositories["org/model"] = tiny_models.write(tmp_path / "model", base)
    hub.repositories["org/tuned"] = tiny_models.write(tmp_path / "tuned", tiny_models.tuned(base, 1, 0.02))
    (tmp_path / "score.py").write_text("def score(model, tokenizer, items):\n    return [1.0 for _ in items]\n")
    (tmp_path / "items.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(12)))
    (tmp_path / "fitness.yaml").write_text("slices: {all: {python: 'score:score', data: items.jsonl}}\n")
    space = "base: org/model@main\nsources: {tuned: org/SOURCE@main}\nlayers: each\nfitness: fitness.yaml\n"
    space += "genes: {method: linear, weight: {low: 0, high: 1, per: [layers]}}\nbudget: {trials: 4}\n"
    (tmp_path / "space.yaml").write_text(space.replace("SOURCE", "tuned"))
    code = "from evomerge.study.dry_run import dry_run\nprint(dry_run('space.yaml'))"
    said = hub.run(code, tmp_path / "cache")
    assert f"'genes': {tiny_models.LAYERS}," in said
    assert "'not checked': ['weights', 'items']" in said
    assert hub.asked == 2 * ["model.safetensors bytes=0-99999"]
    # What headers show is told before a download
    cut = {name: tensor for name, tensor in base.items() if ".1.mlp.up_proj" not in name}
    hub.repositories["org/cut"] = tiny_models.write(tmp_path / "cut", cut)
    (tmp_path / "space.yaml").write_text(space.replace("SOURCE", "cut"))
    assert "up_proj" in hub.run(code, tmp_path / "cache", fails=True).splitlines()[-1]


def test_a_hub_that_fails_on_the_way_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"] = repo = tiny_models.write(tmp_path / "repo", tiny_models.base_tensors())
    code = OPEN + f"import os; os.remove({str(repo / 'model.safetensors')!r}); c.read('model.norm.weight')"
    said = hub.run(code, tmp_path / "cache", fails=True).strip().splitlines()[-1]
    assert "model.safetensors of org/model cannot be fetched from the hub" in said


CHECK = "from evomerge.cli import main; import sys; sys.exit(main({words!r}))"


@pytest.mark.slow
def test_models_on_the_hub_are_checked_by_their_headers(hub: Hub, tmp_path: Path) -> None:
    """No weight is downloaded, a card's licence is read, and a space names the revision that was read."""
    for number, name in enumerate(("model", "tuned")):
        repo = tiny_models.write(tmp_path / name, tiny_models.base_tensors(seed=number))
        (repo / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
        hub.repositories[f"org/{name}"] = repo
    models = ["org/model@main", "org/tuned@main"]
    said = hub.run(CHECK.format(words=["check", *models, "--json"]), tmp_path / "cache")
    told = json.loads(said)
    assert told["mergeable"] is True
    assert [model["licence"] for model in told["models"]] == ["cc-by-nc-4.0"] * 2
    assert any("on the hub, of which only headers are read" in finding["text"] for finding in told["findings"])
    assert set(hub.asked) == {"model.safetensors bytes=0-99999"}
    (tmp_path / "fitness.yaml").write_text("slices: {a: {task: arc_easy, metric: acc}}\n")
    hub.run(CHECK.format(words=["init", *models, "--fitness", "fitness.yaml"]), tmp_path / "cache")
    assert f"tuned: org/tuned@{COMMIT}" in (tmp_path / "space.yaml").read_text()
    assert set(hub.asked) == {"model.safetensors bytes=0-99999"}
