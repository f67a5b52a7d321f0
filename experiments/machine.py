"""The machine and the libraries that a measurement was taken with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from petm.grading.provenance import library_versions

_FURTHER = ("onnxruntime", "transformers")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Returns device, threads, system and versions; nothing that names the machine or its user."""
    versions = library_versions()
    for name in _FURTHER:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
