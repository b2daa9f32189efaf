"""The times of methods are measured in turns, and a budget that cannot be met is named."""

import pytest

from benchmarks.methods_time import PARTS, measure
from tests.conftest import Picture
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.settings.labels import read_prunings


def test_each_method_has_its_medians_or_the_reason(llava_engine: Engine, picture: Picture) -> None:
    conversation = read_conversation([user_message("What?", picture())])
    unpruned, divprune, refused = measure(
        llava_engine.family, conversation, read_prunings("divprune,transprune", "0.111"), rounds=1
    )
    assert unpruned["first_token_ratio"] == 1
    assert set(divprune["seconds"]) == set(PARTS)
    parts = [divprune["seconds"][part] for part in ("vision", "selection", "prefill")]
    assert divprune["seconds"]["first_token"] == pytest.approx(sum(parts))
    assert "cannot be met" in refused["error"]
    assert "seconds" not in refused
