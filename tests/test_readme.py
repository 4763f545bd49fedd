"""The README cannot rot: what it names exists, what exists it names, and its commands run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from engines.contracts import ExitCode, Reason
from pipeline.cli import app
from pipeline.config import LineSettings
from pipeline.metrics import as_markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_named(command: str) -> None:
    """A reader finds each command of ``assayline``."""
    assert re.search(rf"`(assayline )?{command}`|assayline {command}\b", README)


def test_no_command_is_invented() -> None:
    """What the README calls a command is one."""
    named = set(re.findall(r"(?:\$ |`)assayline ([a-z][a-z-]*)", README))
    assert named <= set(COMMANDS)


def test_every_metric_is_in_the_table() -> None:
    """docker/METRICS.md shows the table of the code, row by row; after a change write it anew."""
    assert as_markdown() in (ROOT / "docker" / "METRICS.md").read_text("utf-8")


@pytest.mark.parametrize("key", sorted(LineSettings.model_fields))
def test_every_top_level_setting_is_named(key: str) -> None:
    """A reader finds each key of a line's YAML."""
    assert f"`{key}`" in README


def test_every_exit_code_is_named() -> None:
    """The numbers a shell sees are explained."""
    told = README[README.index("Exit codes:") :]
    assert [int(n) for n in re.findall(r"(\d) \w", told)[: len(ExitCode)]] == [*map(int, ExitCode)]


def test_every_reason_is_a_word_of_the_contract() -> None:
    """UNDECIDED(reason) in the text names reasons that exist."""
    named = set(re.findall(r"UNDECIDED\(([a-z_]+)\)", README)) - {"reason"}
    assert named <= {reason.value for reason in Reason}


def test_every_picture_and_configuration_is_there() -> None:
    """Links to files of the repository lead somewhere."""
    files = set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    files |= set(re.findall(r"configs/[\w./-]+\w", README))
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_help_prints_the_exit_codes() -> None:
    """The first command a newcomer types works and tells how it will end."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "200", "TERM": "dumb"},
    )
    assert "Exit codes" in done.stdout
    assert all(command in done.stdout for command in COMMANDS)
