"""Runs the commands that stay with a run: the dashboard."""

from __future__ import annotations

import argparse
import sys

from evomerge.answers import DONE, complain
from evomerge.escape import printable


def run_dashboard(options: argparse.Namespace) -> int:
    # optuna takes a moment to import.
    from evomerge.study.after.dashboard import dashboard, is_loopback

    if not is_loopback(options.host):
        complain(f"whoever reaches {options.host} can read the run", DONE, "warning")

    def ready(url: str) -> None:
        print(printable(f"{url} shows the run; Ctrl-C ends it"), file=sys.stderr, flush=True)
        if options.json:
            print(f'{{"url": "{url}"}}', flush=True)

    dashboard(options.run, port=options.port, host=options.host, ready=ready)
    return DONE
