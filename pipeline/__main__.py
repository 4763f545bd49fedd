"""``python -m pipeline`` is the command ``assayline``; the supervisor starts roles with it."""

from __future__ import annotations

from pipeline.cli import main

main()
