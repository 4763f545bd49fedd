"""The page *Line*: what a shift lead reads from three metres. It only reads, and never delays."""

from pipeline.dashboard.app import run_dashboard

__all__ = ["run_dashboard"]
