"""What vLLM leaves open to strangers and `tops serve` closes, unless its user says otherwise."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

#: Options of `vllm serve` that are added where they are missing. vLLM listens on all interfaces and fetches any address
#: that a request names, with the access to its network that the server has. No host has a name with spaces.
OPTIONS = {
    "--host": "127.0.0.1",
    "--allowed-media-domains": "none (pictures come as data URLs; the server's --allowed-media-domains names others)",
}

#: Variables that are set where they are not. A redirect would lead from an allowed domain to any other. vLLM decodes 8
#: pictures at once, 1.6 GB at this limit; its own is 179 million pixels, which a file of 200 kB can have.
VARIABLES = {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0", "VLLM_MAX_IMAGE_PIXELS": str(2**26)}


def closed_options(options: Sequence[str]) -> list[str]:
    """The options that are missing among these, those of a file that ``--config`` names included."""
    configured = _configured(value_of("--config", options))
    return [
        part
        for name, value in OPTIONS.items()
        if value_of(name, options) is None and name not in configured
        for part in (name, value)
    ]


def closed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are missing among these."""
    return {name: value for name, value in VARIABLES.items() if name not in environment}


def value_of(name: str, options: Sequence[str]) -> str | None:
    """What follows the option of this name, with dashes or underscores as vLLM takes it; None without it."""
    for option, following in itertools.pairwise([*options, ""]):
        given, equals, value = option.partition("=")
        if given.replace("_", "-") == name:
            return value if equals else following
    return None


def _configured(path: str | None) -> set[str]:
    # Without such a file, or with one that is no YAML, vLLM does not start, and says why.
    if path is None or not Path(path).is_file():
        return set()
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return set()
    return {f"--{name}".replace("_", "-") for name in settings} if isinstance(settings, dict) else set()
