"""Makes rows.ptx of rows.cu: ``python -m engines.gpu.compile_rows``, after rows.cu was changed.

The driver of a line compiles PTX for the GPU it finds, so one file serves all from Turing on. nvcc
writes the newest PTX version it knows, which older drivers refuse; the kernels use nothing that the
version of ``PTX_VERSION`` lacks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ARCHITECTURE = "compute_75"  # the oldest that CUDA 13 compiles for
PTX_VERSION = "6.3"  # the first that knows this architecture; of CUDA 10
SOURCE = Path(__file__).with_name("rows.cu")
TARGET = SOURCE.with_suffix(".ptx")


def compiled(nvcc: str) -> str:
    """The PTX text of rows.cu, without what names the compiler."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.ptx"
        command = [nvcc, "-ptx", f"-arch={ARCHITECTURE}", str(SOURCE), "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        text = output.read_text("utf-8")
    text = re.sub(r"^//.*\n", "", text, flags=re.MULTILINE).lstrip()
    return re.sub(r"^\.version .*$", f".version {PTX_VERSION}", text, flags=re.MULTILINE)


if __name__ == "__main__":
    TARGET.write_text(compiled(shutil.which("nvcc") or "nvcc"), "utf-8")
