"""``python -m pipeline.gpucheck PART OUT``: run one part and keep its outcome."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from engines.contracts import BadConfig, InspectionError
from pipeline.gpucheck.outcome import Asked, Found, NotHere, Outcome, Partly, State
from pipeline.gpucheck.parts import PARTS


def run_part(name: str, asked: Asked) -> Outcome:
    """The outcome of one part, whatever it raises."""
    began_s = time.monotonic()

    def ended(state: State, found: Found) -> Outcome:
        seconds = time.monotonic() - began_s
        return Outcome(name, state, found.sentence, seconds, found.results, found.facts)

    try:
        return ended(State.DONE, PARTS[name].run(asked))
    except (NotHere, BadConfig) as error:  # the machine lacks what the part needs
        return ended(State.NOT_HERE, Found(str(error)))
    except ModuleNotFoundError as error:
        return ended(State.NOT_HERE, Found(f"{error.name} is not installed"))
    except Partly as error:
        return ended(State.FAILED, error.found)
    except InspectionError as error:
        return ended(State.FAILED, Found(str(error)))
    except Exception as error:
        traceback.print_exc()
        said = " ".join(str(error).split())
        return ended(State.FAILED, Found(f"{type(error).__name__}: {said}"))


def main() -> None:
    """Run the part that is named."""
    name, out = sys.argv[1:]
    asked = Asked.read(Path(out))
    asked.keep(run_part(name, asked))


if __name__ == "__main__":
    main()
