"""Laws of graphs on OpenVINO: however rows are spread over the processor, they find the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from engines import openvino_graphs
from engines.backend import BUCKETS, columns
from engines.openvino_graphs import Graph, Named
from tests.engines.exported import Exported, draw_parts, exported, rows_of
from tests.engines.sketches import DecoDiffSketch

F32 = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
Times = tuple[float, float]


@pytest.fixture(scope="module")
def deco(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A sketch without noise."""
    return exported(DecoDiffSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def frames(deco: Exported) -> Named:
    """What the start graph is given of as many rows as a call takes."""
    return columns(rows_of(draw_parts(deco.method, BUCKETS[-1], seed=3)))


def graph(deco: Exported, monkeypatch: pytest.MonkeyPatch, took_s: Times, threads: int) -> Graph:
    """The start graph of a machine on which (all threads together, each its own) take so long."""

    def timed(_: Sequence[object]) -> Iterator[list[float]]:
        yield list(took_s)

    monkeypatch.setattr(openvino_graphs, "_timed", timed)
    settings = {**F32, "INFERENCE_NUM_THREADS": threads}
    return Graph(deco.folder / "start.onnx", deco.spec.graphs["start"], "start", settings)


def first(frames: Named, count: int) -> Named:
    """The first rows of all."""
    return {name: rows[:count] for name, rows in frames.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_rows_find_the_same_together_and_apart(
    deco: Exported, frames: Named, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """To the precision of single numbers, for any number of rows."""
    together = graph(deco, monkeypatch, (1.0, 2.0), threads=2).run_on(first(frames, count))
    apart = graph(deco, monkeypatch, (2.0, 1.0), threads=2).run_on(first(frames, count))
    for name, expected in together.items():
        assert apart[name].shape == expected.shape
        assert np.allclose(apart[name], expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    ("took_s", "threads", "spread"),
    [((2.0, 1.0), 2, [1, 2, 2, 2, 2]), ((1.0, 2.0), 2, [1] * 5), ((2.0, 1.0), 1, [1] * 5)],
)
def test_rows_go_apart_only_where_that_is_quicker(
    deco: Exported,
    monkeypatch: pytest.MonkeyPatch,
    took_s: Times,
    threads: int,
    spread: list[int],
) -> None:
    """A single row has all threads, and one thread is nothing to spread over."""
    found = graph(deco, monkeypatch, took_s, threads)
    assert [len(found._spread._shares[size]) for size in BUCKETS] == spread


def test_a_call_has_ended_when_one_of_its_shares_raises(
    deco: Exported, frames: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are tried alone after it, in the same buffers."""
    ended = []

    class Request:
        def __init__(self, name: str) -> None:
            self.name = name

        def start_async(self) -> None:
            pass

        def wait(self) -> None:
            ended.append(self.name)
            if self.name == "second":
                raise RuntimeError("no memory")

    apart = graph(deco, monkeypatch, (2.0, 1.0), threads=2)
    shares = [openvino_graphs.Share(Request(name), (), ()) for name in ("first", "second")]
    apart._spread._shares[2] = shares
    with pytest.raises(RuntimeError, match="no memory"):
        apart.run_on(first(frames, 2))
    assert sorted(ended) == ["first", "second"]


def test_a_signal_is_survived_whatever_graphs_have_come_and_gone(deco: Exported) -> None:
    """The first of them closed first, as bundles that change places are."""
    program = (
        "import os, signal\n"
        "from engines.backend_openvino import OpenVinoBackend\n"
        "from engines.bundle import GraphsSpec\n"
        "from pathlib import Path\n"
        f"folder = Path({str(deco.folder)!r})\n"
        "spec = GraphsSpec.model_validate_json((folder / 'spec.json').read_bytes())\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard'))\n"
        "held = [OpenVinoBackend(folder, spec, threads=1) for _ in range(2)]\n"
        "held.pop(0).close()\n"
        "held.pop(0).close()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    told = [sys.executable, "-c", program]
    done = subprocess.run(told, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
