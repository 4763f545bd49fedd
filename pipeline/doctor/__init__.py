"""What is wrong with this machine or this line, what was found, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.doctor.check import Check, Weight, exit_code_of, print_checks
from pipeline.doctor.machine import machine_checks

if TYPE_CHECKING:
    from pipeline.config import LineSettings

__all__ = ["Check", "Weight", "doctor", "exit_code_of", "print_checks"]


def doctor(settings: LineSettings | None = None) -> list[Check]:
    """Check the machine and, where a line is given, all that the line needs. Changes nothing."""
    if settings is None:
        return machine_checks(Path("runs"))
    from pipeline.doctor.line import line_checks

    return [*machine_checks(settings.run_dir), *line_checks(settings)]
