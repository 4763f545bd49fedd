"""Another bundle for a running line: named, verified, loaded beside the old one, turned to."""

from pipeline.swap.wanted import bundle_in_force

__all__ = ["bundle_in_force"]
