"""What is done with a verdict: each output in its own thread, so none can delay another."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pipeline.outputs.lane import OutputLane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.config import LineSettings
    from pipeline.evidence.lots import Lots

__all__ = ["OutputLane", "open_outputs"]

QUEUE = 1024  # verdicts, of outputs that write to a disk
GATHER_S = 0.25  # that nobody waits for what these write


@contextmanager
def open_outputs(settings: LineSettings) -> Iterator[list[OutputLane]]:
    """The outputs a line asks for, open and running; leaving drains them."""
    with ExitStack() as stack:
        chosen = list(_chosen(settings, stack))
        yield [stack.enter_context(one) for one in chosen]


def _chosen(settings: LineSettings, stack: ExitStack) -> Iterator[OutputLane]:
    """Outputs with their queues; an output's libraries load only where it is asked for."""
    sinks, run_dir = settings.sinks, settings.run_dir
    if sinks.jsonl:
        from pipeline.outputs.jsonl import Jsonl

        log = Jsonl(sinks.jsonl.path or run_dir / "verdicts.jsonl", sinks.jsonl.fsync)
        yield OutputLane(log, QUEUE, gather_s=GATHER_S)
    if sinks.archive:
        from pipeline.originals import original_of
        from pipeline.outputs.archive import Archive

        folder = sinks.archive.folder or run_dir / "archive"
        lots = _lots(folder, stack) if sinks.archive.evidence else None
        if lots:
            from pipeline.outputs.evidence import Evidence

            yield OutputLane(Evidence(lots), QUEUE, gather_s=GATHER_S)
        keeping = [camera.name for camera in settings.cameras if camera.originals_bytes]
        originals = dict.fromkeys(keeping, partial(original_of, run_dir))
        archive = Archive(folder, sinks.archive.max_bytes, originals, lots)
        yield OutputLane(archive, QUEUE, concerned=archive.keeps)
    if sinks.mqtt:
        from pipeline.outputs.mqtt import Mqtt

        yield OutputLane(Mqtt(sinks.mqtt), sinks.mqtt.queue)
    if sinks.webhook:
        from pipeline.outputs.webhook import Webhook

        yield OutputLane(Webhook(sinks.webhook), sinks.webhook.queue)


def _lots(archive: Path, stack: ExitStack) -> Lots:
    from pipeline.evidence.lots import FOLDER, Lots

    return stack.enter_context(closing(Lots(archive / FOLDER)))
