"""What answers have in common that were asked for in different ways."""

from typing import Any

from tops_engine.answers.base import BaseAnswer
from tops_engine.answers.report import Usage


def token_counts(answer: BaseAnswer) -> dict[str, Any]:
    """Return the usage of an answer of the engine without what the engine keeps, which depends on earlier questions."""
    assert isinstance(answer.usage, Usage)
    return answer.usage.model_dump(exclude={"cache_bytes"})
