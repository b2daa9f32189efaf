"""The model that scores answers of some benchmarks, behind an OpenAI-compatible address."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.errors import InvalidInput, TopsError, shorten
from tops_engine.reproduction.protocols import Benchmark

#: The variables that lmms-eval reads: the key, the address, and the model of the judge.
KEY, ADDRESS, MODEL = "OPENAI_API_KEY", "OPENAI_API_URL", "MODEL_VERSION"
DEFAULT_ADDRESS, DEFAULT_MODEL = "https://api.openai.com/v1", "gpt-4o-2024-11-20"
TIMEOUT = 60.0


def check_judge(names: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Ask the judge for one word before hours of answers are written that it will not score.

    Parameters
    ----------
    names : the benchmarks that it scores; without any it is not asked.

    Raises
    ------
    InvalidInput
        If it cannot be reached or refuses.
    """
    if not names:
        return
    address = (environment.get(ADDRESS) or DEFAULT_ADDRESS).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise InvalidInput(f"{ADDRESS}={shorten(address)} is no address; write http://host:port/v1.")
    messages = [{"role": "user", "content": "Answer with one word: yes or no?"}]
    request = urllib.request.Request(
        f"{address}/chat/completions",
        json.dumps({"model": environment.get(MODEL) or DEFAULT_MODEL, "messages": messages}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {environment.get(KEY, '')}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            response.read()
    except urllib.error.HTTPError as error:
        raise InvalidInput(_sentence(names, address, f"refuses with HTTP {error.code} ({error.reason})")) from error
    except OSError as error:
        raise InvalidInput(_sentence(names, address, f"cannot be reached ({shorten(error)})")) from error


def check_judged(name: str, benchmark: Benchmark, samples: Sequence[Mapping[str, Any]]) -> None:
    """Check that the judge scored every answer; lmms-eval counts an answer without a score as wrong.

    Raises
    ------
    TopsError
        If it did not.
    """
    missing = sum(not sample[benchmark.metric]["eval_model"] for sample in samples)
    if missing:
        raise TopsError(
            f"The judge left {missing} of {len(samples)} answers to {name} without a score; check {KEY}, {ADDRESS} and "
            f"{MODEL}, and give the same command again: the answers are kept, and only the judge is asked anew."
        )


def _sentence(names: Sequence[str], address: str, what: str) -> str:
    return (
        f"The judge of {', '.join(names)} at {shorten(address)} {what}; check {KEY}, {ADDRESS} (which ends in /v1) and "
        f"{MODEL}, or name other --benchmarks."
    )
