"""Settings files: YAML of bounded size, depth and number of values, read without running anything.

``safe_load`` alone still takes a page of aliases that unfold to more values than a machine has, and
nesting that ends in the interpreter's own limit. So what a file would unfold to is counted from its
events first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engines.contracts import BadConfig

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000  # with aliases unfolded
MAX_DEPTH = 50
MAX_TEXT = 10_000  # characters of one value: longer numbers take longer than they are worth


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """What a settings file holds; BadConfig, in one sentence, where it cannot be read."""
    try:
        with path.open("rb") as file:
            told = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(f"{path} cannot be read ({reason}): check its name and rights") from error
    if len(told) > MAX_BYTES:
        raise BadConfig(f"{path} is longer than {MAX_BYTES // 1000} kB, which no settings are")
    try:
        text = told.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path} is not YAML: it holds bytes that are no text") from error
    try:
        _check(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise BadConfig(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (KeyError, AttributeError, TypeError, IndexError) as error:  # of odd tags and dates
        raise BadConfig(f"{path} is not YAML: a value of it is of no kind") from error


def _check(text: str) -> None:
    """ValueError where the text would unfold to more than settings ever are."""
    values = [0]  # of every collection that is open, with what it holds
    names: list[str | None] = []  # anchors of the open collections
    known: dict[str, int] = {}  # anchor -> values
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in known:
                    raise ValueError(f"*{event.anchor} is used inside itself, or nowhere defined")
                values[-1] += known[event.anchor]
            case yaml.ScalarEvent():
                if len(event.value) > MAX_TEXT:
                    raise ValueError(f"a value is longer than {MAX_TEXT} characters")
                values[-1] += 1
                if event.anchor:
                    known[event.anchor] = 1
            case yaml.CollectionStartEvent():
                values.append(1)
                names.append(event.anchor)
                known.pop(event.anchor or "", None)
            case yaml.CollectionEndEvent():
                count, anchor = values.pop(), names.pop()
                values[-1] += count
                if anchor:
                    known[anchor] = count
        if len(names) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if values[-1] > MAX_VALUES:
            raise ValueError(f"it unfolds to more than {MAX_VALUES} values")
