"""The command ``assayline``: one function per command; it parses, loads and calls one function."""

from __future__ import annotations

import os
import sys

# Waiting OpenMP threads sleep instead of spinning: two cores serve many processes here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pipeline.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run one command; what cannot be done is one sentence on stderr and an exit code."""
    from engines.contracts import InspectionError

    try:
        app()
    except InspectionError as error:
        print(f"assayline: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
