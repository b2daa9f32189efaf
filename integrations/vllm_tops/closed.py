"""Safe defaults of `tops serve` for options and variables that vLLM leaves open to the network."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

#: Options of `vllm serve` that are added if they are missing. By default vLLM listens on all interfaces and fetches any
#: address in a request, with the server's access to its network. The value of the second option appears in vLLM's error
#: message; it matches no host, because no host name contains spaces.
OPTIONS = {
    "--host": "127.0.0.1",
    "--allowed-media-domains": "none (send pictures as data URLs, or start the server with --allowed-media-domains)",
}

#: Variables that are set if they are missing. A redirect could lead from an allowed domain to any other domain. vLLM
#: decodes 8 pictures at once, 1.6 GB at this limit; its own limit is 179 million pixels, possible in a file of 200 kB.
VARIABLES = {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0", "VLLM_MAX_IMAGE_PIXELS": str(2**26)}


def closed_options(options: Sequence[str]) -> list[str]:
    """Return the options of :data:`OPTIONS` that neither these options nor their ``--config`` file set."""
    configured = _configured(value_of("--config", options))
    return [
        part
        for name, value in OPTIONS.items()
        if value_of(name, options) is None and name not in configured
        for part in (name, value)
    ]


def closed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of :data:`VARIABLES` that the environment does not set."""
    return {name: value for name, value in VARIABLES.items() if name not in environment}


def value_of(name: str, options: Sequence[str]) -> str | None:
    """Return the value of an option, spelled with dashes or underscores as in vLLM; None if it is missing."""
    for option, following in itertools.pairwise([*options, ""]):
        given, equals, value = option.partition("=")
        if given.replace("_", "-") == name:
            return value if equals else following
    return None


def _configured(path: str | None) -> set[str]:
    # If the file is missing or is not YAML, vLLM itself refuses to start and gives the reason.
    if path is None or not Path(path).is_file():
        return set()
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return set()
    return {f"--{name}".replace("_", "-") for name in settings} if isinstance(settings, dict) else set()
