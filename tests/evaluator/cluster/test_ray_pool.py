"""Searches on clusters of several nodes of this machine: the same trials as without, whoever is lost, and wherever the
models are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import evomerge
from evomerge.errors import InputError
from evomerge.evaluator.cluster import ray_pool, stragglers
from evomerge.study.observer import Observer
from evomerge.study.run.trial import Trial
from tests.conftest import INTERRUPTIBLE, save_tiny
from tests.evaluator.test_executor import check_record, facts

pytest.importorskip("ray", reason="needs Ray: pip install 'evomerge[ray]'")
pytestmark = pytest.mark.ray

Study = Callable[..., Path]
KILLS = 5


class Nodes:
    """A cluster whose head scores nothing, with nodes of two processors."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []
        self.left: list[psutil.Process] = []
        """Actors of nodes that were killed."""

    def add(self, **resources: Any) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=2, **resources))

    def kill(self) -> None:
        """SIGKILL for the raylet of the oldest node."""
        [raylet] = self.nodes.pop(0).all_processes["raylet"]
        left = psutil.Process(raylet.process.pid).children(recursive=True)
        raylet.process.kill()
        self.left += [p for p in left if p.name().startswith("ray::Remote")]

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    made = Nodes()
    try:
        made.add()
        made.add()
        yield made
    finally:
        made.shutdown()


class Heard(Observer):
    """Keeps what is said, and does something when so many trials have begun."""

    def __init__(self, *at: int, do: Callable[[], object] = lambda: None) -> None:
        self.at, self.do, self.begun = at, do, 0
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    warn = note

    def trial_started(self, trial: Trial) -> None:
        self.begun += 1
        if self.begun in self.at:
            self.do()


def actors() -> list[psutil.Process]:
    """The processes of the actors of clusters that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RemoteWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def on_holdout(result: Any) -> list[Any]:
    return [(t.number, t.scores, t.digest, t.state) for t in result.holdout.trials]


def test_what_is_found_depends_on_no_number_of_actors(tiny_study: Study, cluster: Nodes) -> None:
    space = tiny_study()
    one = evomerge.search(space, run="one", trials=40)
    for count, run in ((2, "two"), (4, "four")):
        heard = Heard()
        many = evomerge.search(space, run=run, trials=40, workers=count, ray=cluster.address, observer=heard)
        assert facts(run) == facts("one")
        assert on_holdout(many) == on_holdout(one)
        assert f"workers: {count} with {4 // count} CPU each" in " ".join(heard.lines)
    assert not psutil.wait_procs(actors(), timeout=30)[1]


def test_killed_actors_cost_nothing(tiny_study: Study, cluster: Nodes) -> None:
    space = tiny_study()
    evomerge.search(space, run="one", trials=40)
    killer = Heard(*range(8, 40, 7), do=lambda: actors()[0].kill())
    evomerge.search(space, run="two", trials=40, workers=2, ray=cluster.address, observer=killer)
    assert sum("a worker died (its actor was lost)" in line for line in killer.lines) <= KILLS
    assert (
        sum("a worker starts on" in line for line in killer.lines) >= KILLS - 1
    )  # of the last one there may be no need
    assert facts("two") == facts("one")


def test_killed_nodes_cost_nothing_and_others_join(tiny_study: Study) -> None:
    """A raylet dies with its actors. Each time another one has joined before; with `auto` all of them are used."""
    space = tiny_study()
    evomerge.search(space, run="one", trials=40)
    cluster = Nodes()

    def change() -> None:
        cluster.add()
        cluster.kill()

    killer = Heard(*range(8, 40, 7), do=change)
    try:
        cluster.add()
        cluster.add()
        evomerge.search(space, run="two", trials=40, ray=cluster.address, observer=killer)
    finally:
        cluster.shutdown()
    assert facts("two") == facts("one")
    assert sum("a worker starts on" in line for line in killer.lines) >= KILLS - 1
    assert cluster.left
    assert not psutil.wait_procs(cluster.left, timeout=30)[1]


def killed(command: Sequence[str], line: str) -> None:
    """Runs evomerge, and kills it with SIGKILL when it says that line."""
    process = subprocess.Popen([*INTERRUPTIBLE, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = ""
    for said in process.stderr:
        if said.startswith(line):
            break
    process.kill()
    process.communicate(timeout=60)
    assert said.startswith(line)


@pytest.mark.parametrize("kind", ["generations", "asynchronous"])
def test_a_killed_driver_loses_nothing(tiny_study: Study, cluster: Nodes, kind: str) -> None:
    space = tiny_study()
    on = ["--ray", cluster.address, "--workers", "2"]
    command = ["search", "space.yaml", "--run", "two", "--trials", "40", *on]
    if kind == "asynchronous":
        command += ["--asynchronous", "--optimizer", "random"]
    for line in ("[6/", "[12/", "[18/", "[25/", "[32/") if kind == "generations" else ("[9/",):
        killed(command, line)
        kept = {row[0]: row for row in facts("two") if row[6] != "running"}
        assert len(kept) >= int(line[1:-1])
        assert not psutil.wait_procs(actors(), timeout=60)[1]  # they end with their driver
        command = ["resume", "two"]
    evomerge.resume("two")  # on the cluster of the launch
    now = facts("two")
    assert all(now[number] == row for number, row in kept.items())
    if kind == "asynchronous":
        check_record(evomerge.status("two"), 40)
    else:
        evomerge.search(space, run="one", trials=40)
        assert now == facts("one")


ALONE = """
import json, os, psutil, evomerge
from tests.evaluator.cluster.test_ray_pool import Heard

found = {"names": [], "addresses": []}

def look():
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        found["names"].append(process.name())
        listening = (c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
        found["addresses"] += [c.laddr.ip for c in listening]

evomerge.search("space.yaml", trials=6, workers=2, ray="local", observer=Heard(6, do=look))
found["left"] = [p.name() for p in psutil.Process().children(recursive=True)]
found["statistics"] = os.environ["RAY_USAGE_STATS_ENABLED"]
print(json.dumps(found))
"""


def test_a_cluster_of_this_machine_listens_to_it_alone(tiny_study: Study) -> None:
    """In a process of its own, which has started no other cluster."""
    tiny_study()
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= set(found["names"])
    assert found["addresses"]
    assert set(found["addresses"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert found["statistics"] == "0"
    assert not {"raylet", "gcs_server"} & set(found["left"])


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Callable[[Nodes, str], None]]:
    """Starts a node of a cluster in a file system of its own, in which a command is run first."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces (unshare)")
    started: list[subprocess.Popen[bytes]] = []

    def start(cluster: Nodes, command: str) -> None:
        place = Path(sys.executable).parent
        node = f"{place}/ray start --address {cluster.address} --num-cpus 1 --labels apart=yes --block"
        output = (tmp_path / f"node{len(started)}.log").open("wb")
        process = subprocess.Popen(
            [*alone, "sh", "-ec", f"{command}; exec {node}"], stdout=output, stderr=output, start_new_session=True
        )
        started.append(process)

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def wait_for_nodes(cluster: Nodes, count: int) -> None:
    """Waits until so many nodes of the cluster are alive."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        deadline = time.monotonic() + 120
        while sum(node["Alive"] for node in ray.nodes()) < count:
            assert time.monotonic() < deadline, "the node did not come"
            time.sleep(0.2)
    finally:
        ray.shutdown()


def test_models_are_sent_where_they_are_not_and_other_bits_are_refused(
    tiny_study: Study, tmp_path: Path, apart: Callable[[Nodes, str], None]
) -> None:
    """One node lacks all models; another one has another model by the name of a source."""
    space = tiny_study()
    save_tiny(tmp_path / "other", 9, near=tmp_path / "models/base", scale=0.2)
    evomerge.search(space, run="one", trials=12)
    models, cluster = tmp_path / "models", Nodes()
    copy = f"cp -r {models} {tmp_path}/kept; mount -t tmpfs none {models}"
    try:
        apart(cluster, f"mount -t tmpfs none {models}")
        wait_for_nodes(cluster, 2)
        evomerge.search(space, run="sent", trials=12, ray=cluster.address)
        assert facts("sent") == facts("one")
        received = sorted((Path(os.environ["EVOMERGE_CACHE"]) / "sources").glob("*/model.safetensors"))
        assert len(received) == 3
        apart(cluster, f"{copy}; cp -r {tmp_path}/kept/. {models}; cp -r {tmp_path}/other/. {models}/two")
        wait_for_nodes(cluster, 3)
        heard = Heard()
        evomerge.search(space, run="refused", trials=12, ray=cluster.address, observer=heard)
        assert facts("refused") == facts("one")
        [line] = [line for line in heard.lines if "is not used" in line]
        assert f"it has other bits of {models}/two (model.safetensors)" in line
    finally:
        cluster.shutdown()


def test_a_node_with_other_versions_is_refused(
    tiny_study: Study, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ray_pool.versions()
    monkeypatch.setattr(ray_pool, "versions", lambda: {**real, "numpy": "0.1"})
    with pytest.raises(InputError, match=rf"it has numpy {real['numpy']}, and the run 0\.1; install the same versions"):
        evomerge.search(tiny_study(), ray=cluster.address)
    assert not Path("runs/space").exists()


SCORER = """
import os, time

def score(model, tokenizer, items):
    if not os.path.exists("{marker}"):
        open("{marker}", "w").close()
        time.sleep(120)
    weight = sum(float(p.sum()) for p in model.parameters())
    return [abs(weight) % 1 for _ in items]
"""


def test_a_straggler_is_scored_a_second_time(
    tiny_study: Study, tmp_path: Path, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stragglers, "_LEAST", 2.0)
    marker = tmp_path / "marker"

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        (tmp_path / "scorer.py").write_text(SCORER.format(marker=marker))
        (tmp_path / "items.jsonl").write_text('{"id": "1"}\n{"id": "2"}\n{"id": "3"}\n{"id": "4"}\n')
        fitness["slices"]["c"] = {"python": "scorer:score", "data": "items.jsonl", "timeout": "90s"}
        fitness["pruning"] = False

    space = tiny_study(change)
    marker.touch()
    evomerge.search(space, run="one", trials=20)
    heard = Heard(14, do=marker.unlink)
    evomerge.search(space, run="two", trials=20, workers=2, ray=cluster.address, observer=heard)
    assert sum("takes long; its candidate is scored on" in line for line in heard.lines) == 1
    assert not any("timeout" in line or "other weights" in line for line in heard.lines)
    assert facts("two") == facts("one")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ray": "127.0.0.1:1"}, r"--ray: there is no Ray cluster at 127\.0\.0\.1:1"),
        ({"ray": "ray://head:10001"}, r"--ray: ray://head:10001 is not the address of a head"),
    ],
)
def test_a_wrong_address_is_an_error_of_one_line(tiny_study: Study, given: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        evomerge.search(tiny_study(), **given)
    assert not Path("runs").exists()


def test_a_worker_that_no_node_has_room_for(tiny_study: Study, cluster: Nodes) -> None:
    space = tiny_study(lambda space, fitness: space.update(ray={"num_gpus": 4}))
    with pytest.raises(InputError, match="no node of the cluster has room for a worker, which takes 1 CPU, 4 GPU"):
        evomerge.search(space, ray=cluster.address)
    with pytest.raises(InputError, match=r"'cuda:1' names devices of one machine"):
        evomerge.search(space, ray=cluster.address, device="cuda:1")
