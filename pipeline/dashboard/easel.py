"""A process of its own that draws reconstructions: it holds torch, so that the pages need not.

Started by ``reconstructions`` as ``python -m pipeline.dashboard.easel BUNDLE``. It reads orders
from its standard input and answers on its standard output, each a line of JSON and then the bytes
of a PNG; it ends when its input does, so it outlives no page.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, TYPE_CHECKING, Any

from engines.contracts import InspectionError

if TYPE_CHECKING:
    from engines.bundle import Bundle

NICENESS = 9  # beside the page's own: whoever looks can wait, a verdict cannot


def send(pipe: IO[bytes], told: dict[str, Any], png: bytes = b"") -> None:
    """One message: a line of JSON that says how many bytes follow, and these."""
    pipe.write(json.dumps(told | {"bytes": len(png)}).encode() + b"\n" + png)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the other side has gone."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    told: dict[str, Any] = json.loads(line)
    png = pipe.read(told["bytes"])
    return (told, png) if len(png) == told["bytes"] else None


def draw(bundle: Bundle, orders: IO[bytes], answers: IO[bytes]) -> None:
    """Answer every order until there are no more."""
    from engines.images import decode_image, encode_png
    from engines.reconstruction import open_method, reconstruct

    method = open_method(bundle)
    while (order := receive(orders)) is not None:
        told, png = order
        try:
            found = reconstruct(method, decode_image(png), told["category"], told["plan"])
        except InspectionError as error:  # this part only
            send(answers, {"problem": str(error)})
            continue
        told = {"problem": "", "plan": found.plan, "steps": found.steps}
        send(answers, told, encode_png(found.picture))


def main(folder: str) -> None:
    """Open the bundle and draw; what stands in the way is answered too."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    os.nice(NICENESS)
    from engines.bundle import open_bundle

    try:
        draw(open_bundle(folder), sys.stdin.buffer, answers)
    except (InspectionError, ImportError) as error:
        send(answers, {"problem": str(error)})


if __name__ == "__main__":
    main(sys.argv[1])
