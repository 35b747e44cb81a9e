"""The machine this runs on, in words."""

import os
import platform
from pathlib import Path

import onnxruntime as ort


def machine() -> str:
    """Processor, logical cores, operating system and versions of this machine, in one line."""
    system = f"{platform.system()} {platform.machine()}"
    versions = f"Python {platform.python_version()}, onnxruntime {ort.__version__}"
    return f"{_processor()}, {os.cpu_count()} logical cores, {system}, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
