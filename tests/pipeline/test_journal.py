"""What is owed is known again after any crash, in a file that stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.journal import COMPACT_LINES, Journal
from pipeline.wire import FrameHead


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.binary(max_size=40))
def test_a_journal_read_again_owes_the_same(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[bool, int]], torn: bytes
) -> None:
    """Any adding and settling survives a reopening, even behind a line torn by a crash."""
    path = tmp_path_factory.mktemp("journal") / "left.journal"
    with Journal(path) as journal:
        journal.belong_to("server-1")
        for adds, number in changes:
            head = FrameHead(
                frame_id=f"left/1-{number}", camera="left", captured_ns=number, deadline_ns=number
            )
            if adds:
                journal.add(head)
            else:
                journal.settle([head.frame_id])
        expected = dict(journal.owed)
    with path.open("ab") as file:
        file.write(torn.replace(b"\n", b"").replace(b"{", b""))
    with Journal(path) as journal:
        assert (journal.owed, journal.incarnation) == (expected, "server-1")


def test_a_journal_stays_small(tmp_path: Path) -> None:
    """Settled frames leave the file."""
    path = tmp_path / "left.journal"
    with Journal(path) as journal:
        for number in range(3 * COMPACT_LINES):
            head = FrameHead(
                frame_id=f"left/1-{number}", camera="left", captured_ns=0, deadline_ns=0
            )
            journal.add(head)
            journal.settle([head.frame_id])
    assert len(path.read_bytes().splitlines()) <= COMPACT_LINES + 2


def test_a_full_disk_keeps_no_part_from_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal then remembers in memory, says so once, and writes whole lines again later."""
    path = tmp_path / "left.journal"
    heads = [
        FrameHead(frame_id=f"left/1-{n}", camera="left", captured_ns=n, deadline_ns=n)
        for n in range(4)
    ]
    with Journal(path) as journal, Path("/dev/full").open("ab", buffering=0) as full:
        journal.add(heads[0])
        disk, journal._file = journal._file, full
        journal.add(heads[1])
        journal.add(heads[2])
        journal._file = disk
        journal.add(heads[3])
        assert list(journal.owed.values()) == heads
    assert capsys.readouterr().err.count("journal_failed") == 1
    with Journal(path) as journal:
        assert list(journal.owed.values()) == [heads[0], heads[3]]
