"""Which environment variables a worker is given: these, and no other.

The README has the same list; a test compares them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["PASSED", "PASSED_PREFIXES", "SECRET", "SET", "passed_variables", "worker_environment"]

# Where programs, libraries and downloaded weights are, and in which language and time zone.
PASSED: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
    "TORCH_HOME",
    "CC",
    "CXX",
)
# How a device and its libraries are to be used.
PASSED_PREFIXES: Final = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "CUBLAS_",
    "CUDNN_",
    "NCCL_",
    "HIP_",
    "HSA_",
    "ROCR_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "NUMEXPR_",
    "PYTORCH_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
)
# A name with one of these in it is passed under no circumstances.
SECRET: Final = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "KEY", "AUTH")

# What a run is told whatever the user's environment says. There is no network, and what a
# library would keep for the next run goes with the working folder ({work}).
SET: Final[Mapping[str, str]] = MappingProxyType(
    {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": "{work}/tmp",
        "TRITON_CACHE_DIR": "{work}/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "{work}/tmp/inductor",
        "CUDA_CACHE_PATH": "{work}/tmp/cuda",
        "MPLCONFIGDIR": "{work}/tmp/matplotlib",
        "NUMBA_CACHE_DIR": "{work}/tmp/numba",
    }
)


def passed_variables(given: Mapping[str, str]) -> dict[str, str]:
    """Those of the ``given`` variables a worker may have."""
    return {
        name: value
        for name, value in given.items()
        if (name in PASSED or name.startswith(PASSED_PREFIXES))
        and not any(word in name.upper() for word in SECRET)
    }


def worker_environment(working_dir: Path) -> dict[str, str]:
    """The whole environment of a worker whose working folder is ``working_dir``."""
    fixed = {name: value.format(work=working_dir) for name, value in SET.items()}
    return passed_variables(os.environ) | fixed
