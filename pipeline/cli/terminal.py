"""What commands share on a terminal: progress bars for people, JSON for machines."""

from __future__ import annotations

import gc
import json
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

out = Console()
err = Console(stderr=True)


@contextmanager
def stages() -> Iterator[Callable[[str, float, str], None]]:
    """A bar per stage of long work, on stderr; call it with stage, share done and some facts.

    A stage named "note" is a sentence, which stays above the bars.
    """
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=err) as progress:

        def show(stage: str, share: float, facts: str = "") -> None:
            if stage == "note":
                progress.console.print(facts, markup=False)
                return
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, completed=1.0)
                tasks[stage] = progress.add_task(stage, total=1.0, facts=facts)
            progress.update(tasks[stage], completed=min(share, 1.0), facts=facts)

        yield show
        for task in tasks.values():
            progress.update(task, completed=1.0)


def write_json(path: Path, document: object) -> None:
    """Write a report for machines; BadData where there is no place for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        from engines.contracts import BadData

        reason = error.strerror or error
        raise BadData(f"{path} cannot be written ({reason}): name another file") from None


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event set by the first SIGINT or SIGTERM; the second ends the process at once."""
    stop = threading.Event()

    def heard(number: int, _: object) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    old = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def standing_role() -> Iterator[threading.Event]:
    """``stop_on_signals`` for a process that serves frames for months.

    What its modules hold stays for good and is looked through no more: full collections are short,
    and come so often that what waits for them does not add up to something.
    """
    with stop_on_signals() as stop:
        gc.collect()
        gc.freeze()
        try:
            yield stop
        finally:
            gc.unfreeze()
