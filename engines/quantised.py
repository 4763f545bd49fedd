"""A bundle's int8 graphs: OpenVINO files beside it, and whether they may be loaded.

They are made by ``engines.quantisation`` and never shipped inside a bundle, whose graphs are exact.
A record names the bundle, the versions and the hash of every file; what is loaded are the bytes
that were hashed. A graph that is not in the record runs in single precision.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.backend import engine_cache
from engines.bundle import GraphName
from engines.contracts import BadBundle, BadConfig

if TYPE_CHECKING:
    from pathlib import Path

    from engines.bundle import Bundle

KEY = "openvino:int8"  # of its thresholds
FOLDER, RECORD = "int8", "int8.json"
PAYS = 0.97  # of the other precision's time: less than that is noise
Model = tuple[bytes, bytes]  # .xml and .bin


class QuantisedGraph(BaseModel):
    """One graph of the bundle in int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: int  # that compute in int8; the rest of the graph is f32
    files: dict[str, str]  # name -> sha256


class Quantised(BaseModel):
    """What the int8 graphs of a bundle are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bundle_id: str
    openvino: str
    nncf: str
    layers: str  # which are quantised, in words
    calibrated_on: str
    graphs: dict[GraphName, QuantisedGraph]
    row_ms: dict[str, float]  # start + step in batches of 8, by precision, on the machine it is of

    def pays_beside(self, other: str) -> bool:
        """Whether it was faster than another precision when it was made."""
        return other in self.row_ms and self.row_ms["int8"] < PAYS * self.row_ms[other]

    def sentences(self) -> list[str]:
        """What people should know of it."""
        counts = ", ".join(f"{graph.layers} layers of {n}" for n, graph in self.graphs.items())
        times = ", ".join(f"{ms:.2f} at {name}" for name, ms in self.row_ms.items())
        return [
            f"int8: {counts} ({self.layers}), calibrated on {self.calibrated_on}",
            f"start and one step, ms of a row in a batch: {times}",
            "assayline calibrate --precision int8 gives it thresholds; auto then takes it"
            " where it was faster",
        ]


def quantised_folder(bundle: Bundle) -> Path:
    """Where a bundle's int8 graphs lie."""
    return engine_cache(bundle) / FOLDER


def read_record(bundle: Bundle) -> Quantised | None:
    """What is known of a bundle's int8 graphs; None where they were not built.

    Raises BadBundle for a record that is damaged, of another bundle, or of another OpenVINO.
    """
    path = quantised_folder(bundle) / RECORD
    try:
        record = Quantised.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise BadBundle(f"{path} is damaged; {_again(bundle)}") from error
    if record.bundle_id != bundle.bundle_id:
        raise BadBundle(
            f"{path.parent} holds int8 graphs of bundle {record.bundle_id}, not of "
            f"{bundle.bundle_id}; {_again(bundle)}"
        )
    if record.openvino != (here := openvino_version()):
        raise BadBundle(
            f"{path.parent} was quantised by OpenVINO {record.openvino}, and this is {here}; "
            f"{_again(bundle)}"
        )
    return record


def load_quantised(bundle: Bundle) -> dict[GraphName, Model]:
    """The int8 graphs by name, every byte verified; raises BadConfig where they were not built."""
    record = read_record(bundle)
    if record is None:
        raise BadConfig(f"bundle {bundle.folder} has no int8 graphs; {_again(bundle)}")
    return {name: _verified(bundle, name, graph) for name, graph in record.graphs.items()}


def offered_int8(bundle: Bundle, other: str) -> dict[GraphName, Model] | None:
    """The int8 graphs where a worker may take them by itself, instead of another precision.

    That is where they are whole, have thresholds, and were faster ("auto" stands for bf16).
    """
    calibration = bundle.calibration()
    if calibration is None or KEY not in calibration.entries:
        return None
    try:
        record = read_record(bundle)
        pays = record is not None and record.pays_beside("bf16" if other == "auto" else other)
        return load_quantised(bundle) if pays else None
    except BadBundle:  # a line goes on without what only makes it faster
        return None


def openvino_version() -> str:
    """Release of the OpenVINO in use, without its build."""
    from engines.openvino_graphs import load_openvino

    return str(load_openvino().__version__).split("-")[0]


def _verified(bundle: Bundle, name: GraphName, graph: QuantisedGraph) -> Model:
    xml, weights = (_bytes(bundle, f"{name}.{kind}", graph) for kind in ("xml", "bin"))
    return xml, weights


def _bytes(bundle: Bundle, file: str, graph: QuantisedGraph) -> bytes:
    path = quantised_folder(bundle) / file
    try:
        held = path.read_bytes()
    except OSError as error:
        raise BadBundle(f"{path} cannot be read; {_again(bundle)}") from error
    if hashlib.sha256(held).hexdigest() != graph.files.get(file):
        raise BadBundle(f"{path} does not have the bytes its record names; {_again(bundle)}")
    return held


def _again(bundle: Bundle) -> str:
    return f"run assayline build {bundle.folder} --backend openvino --precision int8"
