"""``python -m evomerge``."""

from evomerge.cli import entry

entry()
