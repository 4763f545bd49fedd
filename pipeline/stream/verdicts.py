"""The verdict side: sinks in consumer groups, readers without a group, trimming, the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engines.contracts import BadFrame, StreamLost
from pipeline.stream.facts import (
    Ledger,
    Standing,
    VerdictDelivery,
    ledger_field,
    ledger_from,
    standing_from,
)
from pipeline.stream.link import BLOCK_MAX_MS, Link
from pipeline.wire import verdict_from

Entries = Iterable[tuple[bytes, dict[bytes, bytes]]]


class Verdicts(Link):
    """Verdicts as they are read; each sink is one group, named after itself."""

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        # Where a consumer stands in what it left unacknowledged; ">" once it has seen all of that.
        self._position: dict[tuple[str, str, str], str] = {}

    def read_verdicts(
        self, cameras: Sequence[str], group: str, consumer: str, count: int, block_ms: int
    ) -> list[VerdictDelivery]:
        """The next verdicts for a sink, up to ``count`` per camera.

        First those that this consumer name left unacknowledged (before a restart, or when a reply
        was lost), then new ones. A verdict may so be seen twice: sinks act once per ``frame_id``.
        """
        camera_of = {self._of(camera).verdicts: camera for camera in cameras}
        places = {key: (group, consumer, key) for key in camera_of}
        ids = {key: self._position.get(place, "0") for key, place in places.items()}
        try:
            found = self._read_group(group, consumer, ids, count, block_ms)
        except StreamLost:
            for place in places.values():  # what was on its way is pending now
                self._position.pop(place, None)
            raise
        for key, entries in found:
            if ids[key] != ">":
                self._position[places[key]] = entries[-1][0].decode() if entries else ">"
        deliveries = [d for key, some in found for d in self._decode(camera_of[key], some, group)]
        if not deliveries and set(ids.values()) != {">"}:  # caught up just now: on to new ones
            return self.read_verdicts(cameras, group, consumer, count, block_ms)
        return deliveries

    def reclaim_verdicts(
        self, cameras: Sequence[str], group: str, consumer: str, min_idle_ms: int, count: int
    ) -> list[VerdictDelivery]:
        """Verdicts that another consumer of the group, now dead, left unacknowledged."""
        deliveries: list[VerdictDelivery] = []
        for camera in cameras:
            key = self._of(camera).verdicts
            taken, _ = self._reclaim(key, group, consumer, min_idle_ms, count)
            entries = [(entry_id.encode(), fields) for entry_id, _, fields in taken]
            deliveries += self._decode(camera, entries, group)
        return deliveries

    def acknowledge_verdicts(
        self,
        group: str,
        deliveries: Iterable[VerdictDelivery],
        acted: Mapping[str, str] | None = None,
    ) -> None:
        """This group has acted on these verdicts.

        ``acted`` gives, by frame id, the ledger field that was acted on where it is not the
        verdict's own: the frame was answered before, by a server that was lost.
        """
        words: dict[str, list[str]] = {}
        for delivery in deliveries:
            frame_id, written = delivery.verdict.frame_id, ledger_field(delivery.verdict)
            words.setdefault(delivery.camera, []).extend(
                (
                    delivery.entry_id,
                    frame_id.rpartition("/")[2],
                    written,
                    (acted or {}).get(frame_id) or written,
                )
            )
        for camera, of_camera in words.items():
            keys = self._of(camera)
            self._run("acknowledge", [keys.verdicts, keys.unacted, keys.ledger], group, *of_camera)

    def trim_verdicts(self, camera: str, keep: int = 0) -> int:
        """Delete what every group has acknowledged, except the newest ``keep``; how many went."""
        keys = self._of(camera)
        return int(self._run("trim_verdicts", [keys.verdicts, keys.ledger], keep))

    def tail_verdicts(self, camera: str, count: int) -> list[VerdictDelivery]:
        """The newest verdicts still kept, oldest first, without a group."""
        with self._translated():
            found = self._commands.xrevrange(self._of(camera).verdicts, count=count)
        return self._decode(camera, reversed(found))

    def follow_verdicts(
        self, camera: str, after_id: str, count: int = 64, block_ms: int = 0
    ) -> list[VerdictDelivery]:
        """Verdicts after ``after_id`` ("0" = all still kept), oldest first, without a group."""
        block = min(block_ms, BLOCK_MAX_MS) if block_ms > 0 else None
        while True:
            with self._translated():
                found = self._blocking.xread({self._of(camera).verdicts: after_id}, count, block)
            entries = found[0][1] if found else []
            deliveries = self._decode(camera, entries)
            if deliveries or not entries:
                return deliveries
            after_id, block = entries[-1][0].decode(), None  # none is ours: what lies behind them?

    def ledger(self, camera: str) -> Ledger:
        """The counts of a camera, of one instant."""
        keys = self._of(camera)
        flat, still_open = self._run("ledger", [keys.ledger, keys.open])
        return ledger_from(dict(zip(flat[::2], flat[1::2], strict=True)), still_open)

    def standing(self, camera: str, *, knows_sink: bool = False) -> Standing:
        """Where the frames of a camera stand; without a sink, what is answered is dealt with.

        ``knows_sink``: there is one, though a server that has just begun has not met it yet.
        """
        keys = self._of(camera)
        names = [keys.open, keys.unacted, keys.ledger, keys.verdicts]
        *told, sinks = self._run("standing", names, int(knows_sink))
        return Standing(*standing_from(camera, *told), has_sink=sinks > 0)

    def recall(self, camera: str, acted: Mapping[str, int]) -> bool:
        """Begin the ledger of a server that has none with what was dealt with before its loss."""
        if not acted:
            return False
        words = [word for field in acted.items() for word in field]
        total = sum(acted.values())
        return bool(self._run("recall", [self._of(camera).ledger], "captured", total, *words))

    def _decode(self, camera: str, entries: Entries, group: str = "") -> list[VerdictDelivery]:
        """Entries as verdicts. What is none is not ours: acknowledged, so it blocks nothing."""
        deliveries = []
        for raw_id, fields in entries:
            entry_id = raw_id.decode()
            try:
                verdict, *pictures = verdict_from(fields)
            except BadFrame:
                if group:
                    with self._translated():
                        self._commands.xack(self._of(camera).verdicts, group, entry_id)
                continue
            deliveries.append(VerdictDelivery(camera, entry_id, verdict, *pictures))
        return deliveries
