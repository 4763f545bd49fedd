"""Laws of graphs on OpenVINO: however rows are spread over the processor, they find the same."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from engines import openvino_graphs
from engines.backend import BUCKETS, columns
from engines.openvino_graphs import Call, Graph, Named
from tests.engines.exported import Exported, draw_parts, exported, rows_of
from tests.engines.sketches import DecoDiffSketch

F32 = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
Took = Callable[[int], float]  # seconds of a call, by how many shares it has


def together(shares: int) -> float:
    """A machine that is quickest with all rows in one share."""
    return shares


def apart(shares: int) -> float:
    """A machine that is quickest with one row to a share."""
    return 1 / shares


@pytest.fixture(scope="module")
def deco(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A sketch without noise."""
    return exported(DecoDiffSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def frames(deco: Exported) -> Named:
    """What the start graph is given of as many rows as a call takes."""
    return columns(rows_of(draw_parts(deco.method, BUCKETS[-1], seed=3)))


class Machine(NamedTuple):
    """How long calls take, and what takes part in them."""

    took: Took
    threads: int
    engines: int = 1


def graph(deco: Exported, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Graph:
    """The start graph on a machine."""

    def timed(calls: Sequence[Call]) -> Iterator[list[float]]:
        yield [machine.took(len(call.requests)) for call in calls]

    monkeypatch.setattr(openvino_graphs, "_timed", timed)
    settings = {**F32, "INFERENCE_NUM_THREADS": machine.threads}
    spec = deco.spec.graphs["start"]
    return Graph(deco.folder / "start.onnx", spec, "start", settings, engines=machine.engines)


def first(frames: Named, count: int) -> Named:
    """The first rows of all."""
    return {name: rows[:count] for name, rows in frames.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize(
    "machine",
    [Machine(apart, 2), Machine(apart, 1), Machine(apart, 2, 2), Machine(apart, 4, 2)],
)
def test_rows_find_the_same_however_they_go(
    deco: Exported, frames: Named, monkeypatch: pytest.MonkeyPatch, count: int, machine: Machine
) -> None:
    """To the precision of single numbers, for any number of rows."""
    expected = graph(deco, monkeypatch, Machine(together, 2)).run_on(first(frames, count))
    chosen = graph(deco, monkeypatch, machine)
    for one in (chosen, *(chosen.beside() for _ in range(machine.engines - 1))):
        for name, found in one.run_on(first(frames, count)).items():
            assert found.shape == expected[name].shape
            assert np.allclose(found, expected[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    ("machine", "shares"),
    [
        (Machine(apart, 2), [1, 2, 4, 8, 16]),
        (Machine(together, 2), [1] * 5),
        (Machine(lambda shares: abs(shares - 2), 2), [1, 2, 2, 2, 4]),
        (Machine(apart, 1), [1, 2, 4, 8, 16]),
        (Machine(together, 1), [1] * 5),
        (Machine(apart, 2, 2), [1, 2, 4, 8, 16]),
        (Machine(apart, 4, 2), [1, 2, 4, 8, 16]),
    ],
)
def test_rows_go_as_is_quickest(
    deco: Exported, monkeypatch: pytest.MonkeyPatch, machine: Machine, shares: list[int]
) -> None:
    """A single row has all threads of its engine; on one thread, shares go in turn."""
    calls = graph(deco, monkeypatch, machine)._spread._calls
    assert [len(calls[size].requests) for size in BUCKETS] == shares
    has_streams = machine.engines == 1 and machine.threads > 1
    for call in calls.values():
        assert call.at_once == (has_streams and len(call.requests) > 1)


@pytest.mark.parametrize(
    ("machine", "in_caller"), [(Machine(apart, 2, 2), True), (Machine(apart, 4, 2), False)]
)
def test_an_engine_of_one_thread_computes_where_it_is_called(
    deco: Exported,
    frames: Named,
    monkeypatch: pytest.MonkeyPatch,
    machine: Machine,
    in_caller: bool,
) -> None:
    """No other thread has to be woken, and engines beside each other share no compiled model."""
    one = graph(deco, monkeypatch, machine)
    engines = (one, one.beside())
    for engine in engines:
        began_s, began_here_s = time.process_time(), time.thread_time()
        for _ in range(3):
            engine.run_on(frames)
        here_s, taken_s = time.thread_time() - began_here_s, time.process_time() - began_s
        assert (here_s > 0.7 * taken_s) == in_caller
    compiled = {id(engine._spread._ways[1].compiled) for engine in engines}
    assert len(compiled) == (2 if in_caller else 1)


def test_engines_beside_each_other_share_no_row(
    deco: Exported, frames: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one finds stays as it is while the other runs."""
    one = graph(deco, monkeypatch, Machine(apart, 2, 2))
    found = one.run_on(first(frames, 4))
    kept = {name: rows.copy() for name, rows in found.items()}
    others = {name: rows[4:8] for name, rows in frames.items()}
    one.beside().run_on(others)
    for name, rows in found.items():
        assert np.array_equal(rows, kept[name]), name


def test_a_call_has_ended_when_one_of_its_requests_raises(
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

    found = graph(deco, monkeypatch, Machine(apart, 2))
    requests = tuple(Request(name) for name in ("first", "second"))
    found._spread._calls[2] = Call(requests, at_once=True)
    with pytest.raises(RuntimeError, match="no memory"):
        found.run_on(first(frames, 2))
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
