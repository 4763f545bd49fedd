"""The pages of a line, for the shift lead, the vision engineer and whoever keeps it running.

They read a sampled preview and never delay a verdict. What people do here is written beside the
run: labels of parts, and thresholds with a name and a reason.
"""

from pipeline.dashboard.app import run_dashboard

__all__ = ["run_dashboard"]
