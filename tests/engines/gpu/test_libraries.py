"""Which TensorRT is there, and one sentence for each way in which none is."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines.contracts import BadConfig, EngineFault
from engines.gpu import libraries
from engines.gpu.libraries import Words, load_library


class Logger:
    """The class that both libraries offer to be told by."""

    def log(self, severity: object, message: str) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def _forget() -> None:
    """No test meets a library that another loaded."""
    libraries._loaded.cache_clear()


def fake(version: str, **more: object) -> ModuleType:
    """A module that looks like TensorRT."""
    module = ModuleType("tensorrt")
    module.__dict__.update(__version__=version, ILogger=Logger, **more)
    module.__dict__.setdefault("init_libnvinfer_plugins", lambda *_: True)
    return module


def put(monkeypatch: pytest.MonkeyPatch, **modules: ModuleType | None) -> None:
    """Let imports find these; None = there is no such module."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_without_any_library_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how each is installed."""
    put(monkeypatch, tensorrt=None, tensorrt_rtx=None)
    with pytest.raises(
        BadConfig, match=r"neither tensorrt nor tensorrt_rtx .*\[gpu\].*\[gpu-rtx\]"
    ):
        load_library()
    with pytest.raises(BadConfig, match=r"tensorrt_rtx is not installed; pip install .*gpu-rtx"):
        load_library("tensorrt_rtx")


def test_libraries_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is said, not passed over for the other library."""

    def broken(_: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(libraries, "_imported", broken)
    with pytest.raises(BadConfig, match=r"tensorrt is installed but cannot be loaded \(libnvinfer"):
        load_library()


@pytest.mark.parametrize("version", ["10.11.0.33", "12.0.1", "8.6.1"])
def test_versions_that_nobody_tried_are_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """With those that may be installed."""
    put(monkeypatch, tensorrt=fake(version))
    with pytest.raises(BadConfig, match=rf"tensorrt {version} is not supported.*>=10.12,<12"):
        load_library("tensorrt")


def test_tensorrt_comes_first_and_announces_its_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """RTX has none; which of both serves is the same in every process."""
    told: list[str] = []
    module = fake("10.12.0.36", init_libnvinfer_plugins=lambda _, name: told.append(name))
    put(monkeypatch, tensorrt=module, tensorrt_rtx=fake("1.7.1.116"))
    library = load_library()
    assert (str(library), told) == ("tensorrt 10.12.0.36", [""])
    assert not library.names_capabilities
    assert load_library("tensorrt_rtx").names_capabilities


def test_a_library_that_makes_nothing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bindings raise a TypeError, its logger knows why."""

    def nothing(logger: Any) -> None:  # noqa: ANN401 - the library's own
        logger.log(SimpleNamespace(name="ERROR"), "no CUDA driver")
        raise TypeError("factory function returned nullptr")

    put(monkeypatch, tensorrt=fake("11.4.0.106", Builder=nothing, Runtime=nothing))
    library = load_library("tensorrt")
    for make in (library.builder, library.runtime):
        with pytest.raises(EngineFault, match=r"tensorrt 11.4.0.106 does not work.*no CUDA driver"):
            make()


def test_errors_and_warnings_are_events(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors are kept for the sentence; what is harmless or talk is not told."""
    words = Words(SimpleNamespace(ILogger=Logger))
    said = {
        "INTERNAL_ERROR": "out of memory",
        "WARNING": "a slow kernel",
        "INFO": "chatter",
        "VERBOSE": "more of it",
    }
    for severity, message in said.items():
        words.logger.log(SimpleNamespace(name=severity), message)
    words.logger.log(SimpleNamespace(name="WARNING"), "Make sure input category has Int64 binding.")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split('"')[1] for line in lines] == ["out of memory", "a slow kernel"]
    assert words.last == "out of memory"
    words.forget()
    assert words.last == "it gave no reason"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
def test_rtx_is_there() -> None:
    """The real one loads without a GPU and makes a builder."""
    assert load_library("tensorrt_rtx").builder() is not None
