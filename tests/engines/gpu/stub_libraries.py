"""NVIDIA's own bindings of TensorRT, loaded over empty libraries that are compiled here.

The wheel of the bindings is small and open to all; the libraries behind it are not. Over empty ones
every class, method, flag and signature can be looked at, and nothing can be run.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL"),
    *("getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry"),
)
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
NEEDED = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_bindings") is None,
        reason="the bindings of TensorRT are not installed (pip install tensorrt-cu13-bindings)",
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here"),
]


def compile_stubs(folder: Path, major: int) -> Path:
    """Libraries whose every function answers nothing, in ``folder``."""
    source = folder / "empty.c"
    functions = [f"void *{name}(void) {{ return 0; }}" for name in SYMBOLS]
    source.write_text("\n".join([*functions, "int initLibNvInferPlugins(void) { return 1; }\n"]))
    for name in LIBRARIES:
        target = f"{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{target}", "-o", target, source.name]
        subprocess.run(command, cwd=folder, check=True)
    return folder
