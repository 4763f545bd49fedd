"""``make soak``: a line flat out for hours on the timed stub; does anything grow?

What was seen is in ``runs/soak``: ``summary.json``, ``looks.json`` and ``soak.png``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from tests.soak.drawing import draw
from tests.soak.fit import FILLING, summary
from tests.soak.running import soak

TOLD_FROM = 4 * FILLING


def main() -> int:
    """Soak, draw, tell; 1 where something grows or a frame has no verdict."""
    asked = _asked()
    folder: Path = asked.out
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {"dashboard": {"enabled": asked.dashboard}, "metrics": {"port": asked.metrics}}
    soaked = soak(folder.resolve() / "line", asked.frames, asked.minutes, asked.period_s, settings)
    told = summary(soaked)
    (folder / "looks.json").write_text(json.dumps(soaked.as_json()) + "\n")
    (folder / "summary.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(folder / "soak.png", soaked.looks, told)
    if not asked.keep:
        shutil.rmtree(folder / "line")
    print(f"{told['frames']} frames in {told['seconds']:.0f} s, residual {told['residual']}")
    for role, one in told["rss_bytes"].items():
        print(
            f"  {role:8} {one['per_frame']:+9.2f} bytes per frame "
            f"({one['lowest']:+.2f} to {one['highest']:+.2f}; "
            f"{one['between_ends']:+.2f} from end to end), {one['last'] / 1e6:.1f} MB, "
            f"{told['descriptors'][role]['last']:.0f} descriptors"
        )
    print(f"  redis    {told['redis_bytes']['per_frame']:+9.2f} bytes per frame by its own count")
    print(f"  latency  {told['latency_ms']}")
    if told["frames"] < TOLD_FROM:
        print(f"  what is remembered still fills: slopes tell something from {TOLD_FROM} frames on")
    for wrong in told["wrongs"]:
        print(f"WRONG: {wrong}")
    return 1 if told["wrongs"] else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--period-s", type=float, default=1.0, help="between two looks")
    parser.add_argument("--dashboard", action="store_true", help="with the page")
    parser.add_argument("--metrics", type=int, default=0, help="with /metrics from this port on")
    parser.add_argument("--keep", action="store_true", help="keep the line's own folder")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
