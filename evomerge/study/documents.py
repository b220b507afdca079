"""Keeps what people read of a run's items, once a run."""

from __future__ import annotations

from evomerge.errors import TrialError
from evomerge.evaluator.executor import run_all
from evomerge.evaluator.jobs import DocumentsJob, EvalTask
from evomerge.study.run.documents import MOST, documents_file, write_documents
from evomerge.study.session import Session
from evomerge.types import Document


def keep_documents(session: Session) -> None:
    """Writes the texts of the run's items, unless it has them. A search needs none: what goes wrong is a warning."""
    if documents_file(session.folder.items).exists():
        return
    try:
        for documents in run_all(session.executor, [_documents(session)]):
            write_documents(session.folder.items, documents)
    except (TrialError, OSError) as error:
        session.observer.warn(f"the texts of the items are not kept, so that reports do not show them: {error}")


def _documents(session: Session) -> EvalTask[dict[str, list[Document]]]:
    documents: dict[str, list[Document]] = yield DocumentsJob(session.plan.space.outline(), MOST)
    return documents
