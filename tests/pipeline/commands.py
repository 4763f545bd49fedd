"""Commands run in this process as a shell runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main

Command = Callable[..., tuple[int, str]]


def command_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function from words to the exit code and what was said on stderr."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["assayline", *map(str, words)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ending:
            return int(ending.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def sentence(said: str) -> str:
    """The one sentence on stderr; nothing like a traceback comes with it."""
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if line.startswith("assayline: ")]
    assert len(told) == 1
    assert said.rstrip().endswith(told[0])
    return told[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
