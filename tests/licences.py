"""What is pinned, what is installed and under which licence: for the audit, and to write it down.

``python -m tests.licences`` rewrites ``configs/licences.txt`` from what is installed here; a
package that is pinned and not installed keeps what the file says of it.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PINS = ROOT / "configs" / "constraints.txt"
LICENCES = ROOT / "configs" / "licences.txt"
HEAD = "# Every pinned package and its licence, by its own metadata; `make audit` compares.\n"
UNKNOWN = "not stated in its metadata"
UNCHECKED = "unchecked: not installed where this was written"


def plain(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Versions by name; ValueError for a line that pins nothing."""
    lines = [line.partition("#")[0].strip() for line in PINS.read_text("utf-8").splitlines()]
    found = {}
    for line in filter(None, lines):
        name, sign, version = line.partition("==")
        if not sign or not re.fullmatch(r"[0-9][\w.+!]*", version):
            raise ValueError(f"{line} pins no version")
        found[plain(name)] = version
    return found


def licences() -> dict[str, str]:
    """Licences by name, as the file has them."""
    lines = LICENCES.read_text("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {pair[0]: pair[1] for pair in pairs}


def installed() -> dict[str, metadata.Distribution]:
    """Distributions of this environment by name, without those that setuptools carries inside."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return {plain(found.metadata["Name"]): found for found in metadata.distributions(path=places)}


def licence_of(found: metadata.Distribution) -> str:
    """What a distribution says of its licence: an expression, its classifiers, or one line."""
    told = found.metadata
    if told.get("License-Expression"):
        return str(told["License-Expression"])
    kinds = [kind for kind in told.get_all("Classifier") or [] if kind.startswith("License ::")]
    names = sorted({kind.rpartition("::")[2].strip() for kind in kinds} - {"OSI Approved"})
    lines = (told.get("License") or "").strip().splitlines()
    return " AND ".join(names) or (lines[0][:80] if lines else UNKNOWN)


def needed(wanted: Iterable[str]) -> set[str]:
    """Everything that these requirements bring along, as far as it is installed here."""
    here, todo, seen = installed(), [Requirement(one) for one in wanted], set[tuple[str, str]]()
    while todo:
        one = todo.pop()
        name = plain(one.name)
        for extra in ("", *sorted(one.extras)):
            if (name, extra) in seen or name not in here:
                continue
            seen.add((name, extra))
            more = [Requirement(text) for text in here[name].requires or []]
            todo += [r for r in more if not r.marker or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def write() -> None:
    """Write the file anew."""
    here, known = installed(), licences() if LICENCES.exists() else {}
    lines = [
        f"{name} {licence_of(here[name]) if name in here else known.get(name, UNCHECKED)}"
        for name in sorted(pins())
    ]
    LICENCES.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    write()
