"""Environment variables that reward functions see.

An allow-list: the worker's environment has tokens (of hubs, trackers, clouds, Ray), and a new kind
of token has a name that no list of forbidden names knows.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Mapping, Sequence

from rlhf_ray.config.errors import RequestError

# Where things are, in which language, and how many threads; no proxies, whose addresses may hold
# a password.
_PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR"),
    *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "SSL_CERT_FILE"),
    *("SSL_CERT_DIR", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHASHSEED", "PYTHONWARNINGS"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONIOENCODING"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
    *("OMP_*", "MKL_*", "OPENBLAS_*", "NUMEXPR_*", "TOKENIZERS_PARALLELISM", "NLTK_DATA"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"),
    *("TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE", "TORCH_HOME"),
)


def function_environment(environment: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """Choose the variables for the process of the functions.

    Args:
        environment: of the worker.
        more: names that are passed in addition.

    Raises:
        RequestError: one of them is not set.
    """
    for name in more:
        if name not in environment:
            raise RequestError(
                f"reward.environment: {name} is not set where the reward functions run; set it "
                "before starting the command (on a cluster: on every node), or remove the name"
            )
    chosen = {
        name: value
        for name, value in environment.items()
        if name in more or any(fnmatch.fnmatchcase(name, pattern) for pattern in _PASSED)
    }
    return {**chosen, "PYTHONPATH": os.pathsep.join(search_path())}


def search_path() -> list[str]:
    """Module search path of this process, for a child; "" is the current folder."""
    return [entry or os.getcwd() for entry in sys.path]
