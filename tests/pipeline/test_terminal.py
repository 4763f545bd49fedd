"""What people see of long work."""

from __future__ import annotations

import gc
import io

import pytest
from rich.console import Console

from pipeline.cli import terminal


def test_a_note_stays_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is printed whole, brackets and all, and is no bar of its own."""
    written = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=written, width=60))
    sentence = "'nut' holds out 7 of 28 good images [sic], which is too few for what is promised"
    with terminal.stages() as progress:
        progress("note", 1.0, sentence)
        progress("read", 0.5, "nut")
    lines = written.getvalue()
    assert " ".join(lines.split("\nread")[0].split()) == sentence
    assert "note" not in lines


def test_a_role_that_stands_leaves_its_modules_out_of_collections() -> None:
    """As long as it stands; what comes later is collected as ever."""
    before = gc.get_freeze_count()
    with terminal.standing_role() as stop:
        assert not stop.is_set()
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0
