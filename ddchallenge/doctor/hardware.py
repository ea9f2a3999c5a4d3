"""Processors, memory, GPUs, and the PyTorch that is to use them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, Final

from ddchallenge.doctor.findings import GIB, Finding, ask, last_line
from ddchallenge.environment import describe_environment
from ddchallenge.jsonio import printable

__all__ = ["find_machine", "find_torch"]

# In a process of its own: a broken driver can hang or crash whoever asks it.
_TORCH: Final = """
import json, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    from ddchallenge.scoring.fast import arithmetic_of
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        known = torch.cuda.get_device_properties(index)
        arithmetic = arithmetic_of(torch.device("cuda", index))
        gpus.append([known.name, known.total_memory, str(arithmetic)])
    cpu = str(arithmetic_of(torch.device("cpu")))
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus, "cpu": cpu,
                  "said": [str(w.message) for w in said if "CUDA" in str(w.message)]}))
"""


def find_torch() -> Iterable[Finding]:
    """PyTorch, bfloat16, and the GPUs it can use."""
    # -P: a json.py in the working folder is not asked.
    status, out, err = ask(sys.executable, "-P", "-c", _TORCH, seconds=85)
    if status != 0:
        what = last_line(err) or f"it ended with status {status}"
        yield Finding(
            key="torch", title="PyTorch", text=what, state="missing",
            advice="Install ddchallenge again (`make install`)",
        )  # fmt: skip
        yield Finding(key="gpu", title="GPU", text="PyTorch cannot be asked", state="unknown")
        return
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
    yield Finding(key="torch", title="PyTorch", text=f"{found['torch']}, {built}")
    yield Finding(
        key="bf16", title="bfloat16 on the CPU",
        text="in hardware" if "bfloat16" in found["cpu"] else "not in hardware: float32 is used",
    )  # fmt: skip
    gpus = found["gpus"]
    status, out, _ = ask(
        "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", seconds=10
    )
    driver = printable(out.splitlines()[0])[:100].rpartition(",")[2].strip() if out.strip() else ""
    seen = status == 0 and bool(driver)
    if not gpus:
        said = "".join(f" ({last_line(text)})" for text in found["said"][:1])
        yield Finding(
            key="gpu", title="GPU", state="missing", amount=0,
            text=f"no CUDA device that PyTorch can use{said}",
            advice=f"nvidia-smi finds one, driver {driver}: install a PyTorch built for that driver"
            if seen else "Without one everything runs on the CPU, and longer",
        )  # fmt: skip
        return
    shown = [
        f"{name}, {memory / GIB:.0f} GiB, {'bfloat16' if 'bfloat16' in arithmetic else 'float32'}"
        for name, memory, arithmetic in gpus
    ]
    text = printable("; ".join(shown)) + (f"; driver {driver}" if seen else "")
    yield Finding(key="gpu", title="GPU", text=text, amount=len(gpus))
    memory = min(memory for _, memory, _ in gpus)
    yield Finding(
        key="gpu_memory", title="GPU memory", text=f"{memory / GIB:.0f} GiB (the least)",
        amount=memory,
    )  # fmt: skip


def find_machine() -> Iterable[Finding]:
    """CPU, memory, and the harness itself."""
    import psutil

    known = describe_environment("cpu")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = usable or 1
    yield Finding(
        key="cpu", title="CPU", amount=cores, text=f"{known.hardware}, {cores} for this process"
    )
    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    yield Finding(key="memory", title="memory", text=text, amount=memory.available)
    dirty = " with changes" if known.dirty else ""
    commit = f", commit {known.commit[:12]}{dirty}" if known.commit else ", no git checkout"
    yield Finding(key="harness", title="ddchallenge", text=f"{known.version}{commit}")
