"""`evomerge.dashboard`: optuna-dashboard over a run, finished or going on."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, NoReturn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InputError, Where
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.manifest import Environment
from evomerge.study.run.numbers import constraints, of_holdout, of_search
from evomerge.study.run.release import rescored
from evomerge.study.run.store import Store, open_storage

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy

PORT, LOOPBACK = 8080, "127.0.0.1"
_FIRST = ("kind", "label")


def dashboard(
    run: str | Path,
    *,
    port: int = PORT,
    host: str = LOOPBACK,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves optuna-dashboard over a run until it is interrupted. The page reads the run, and can change nothing.

    Args:
        run: its name (in ``./runs``) or path.
        port: of the page; 0: any that is free.
        host: the address to listen on; by default only this machine is answered.
        ready: is told the page's URL once it is served.

    Raises:
        InputError: there is no such run, optuna-dashboard is not installed, or the port is taken.
    """
    folder = RunFolder.existing(run)
    view = RunView(folder)
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        mend = "pip install 'evomerge[dashboard]'"
        raise InputError("optuna-dashboard is not installed", mend) from None
    if not 0 <= port <= 65535:
        raise InputError(f"{port} is no port", "give one from 1 to 65535", Where("--port"))
    try:
        server = make_server(host, port, wsgi(view), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        problem = f"cannot listen on {host}:{port} ({error.strerror or error})"
        raise InputError(problem, "stop what listens there, or give another --port", Where("--port")) from None
    with server:
        try:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/")
            server.serve_forever()
        except KeyboardInterrupt:
            return


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _refused(self: RunView, *_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("a run is changed by evomerge alone")


class RunView(BaseStorage):
    """A run's storage for readers: nothing can be written, and trials have all numbers, in front of what is long.

    Unlike the storage itself it also has what became known after a trial had ended: holdout scores, scores of
    pruned trials in full, and, of runs of older versions, numbers and constraints at all.
    """

    def __init__(self, folder: RunFolder) -> None:
        environment = Environment.read(folder)
        self._storage = open_storage(folder.journal, environment.storage)
        self._study_id = self._found(environment.study, folder)

    def _found(self, name: str, folder: RunFolder) -> int:
        try:
            return self._storage.get_study_id_from_name(name)
        except KeyError:
            raise InputError(f"the run {folder.name!r} has no trials yet", "look again when it has some") from None

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refused
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refused
    set_trial_user_attr = set_trial_system_attr = _refused

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return [study for study in self._storage.get_all_studies() if study._study_id == self._study_id]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return next(t for t in self.get_all_trials(self._study_id) if t._trial_id == trial_id)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        frozen = self._storage.get_all_trials(study_id, deepcopy=True)
        store = Store(self._storage, study_id)
        signs = {name: slice_["sign"] for name, slice_ in store.facts.get("slices", {}).items()}
        floors = Floors.from_data(store.facts["gates"]) if "gates" in store.facts else Floors.unsettled()
        holdout = {trial.number: of_holdout(trial, signs) for trial in rescored(store)}
        asked = {key: math.nan for numbers in holdout.values() for key in numbers}
        known = {trial.number: trial for trial in store.trials()}
        for shown in frozen:
            trial = known.get(shown.number)
            if trial is None:
                continue
            numbers = {key: v for key, v in shown.user_attrs.items() if key.startswith(("score.", "margin."))}
            numbers |= of_search(trial, signs, floors) | holdout.get(trial.number, asked)
            first = {key: shown.user_attrs[key] for key in _FIRST}
            shown.user_attrs = {**first, **numbers, **{k: v for k, v in shown.user_attrs.items() if k not in numbers}}
            if trial.ranked and trial.objective is not None:
                if floors.settled:
                    shown.system_attrs = {**shown.system_attrs, "constraints": constraints(floors.verdicts(trial))}
                shown.state = TrialState.COMPLETE if trial.state == "complete" else TrialState.PRUNED
                shown.values = [trial.objective]
        return [trial for trial in frozen if states is None or trial.state in states]
