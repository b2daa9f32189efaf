"""Test the running mean of an allocation: never above keep, and more for the pictures that need it."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import Picture
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.generation.running_mean import RunningMean
from tops_engine.settings import Generation, Pruning

GENERATION = Generation(max_tokens=2)
PRUNING = Pruning(method="random", keep=0.375, allocation="coverage", mean_over="stream")


@pytest.fixture(autouse=True)
def new_stream(llava_engine: Engine) -> Iterator[None]:
    llava_engine.restart_streams()
    yield
    llava_engine.restart_streams()
    llava_engine.forget()


def curve(difficulty: float, most: int) -> list[float]:
    """Return the shares of a picture: an easy one is covered by few tokens."""
    return [1 - (1 - 1 / difficulty) ** count for count in range(1, most + 1)]


@given(st.lists(st.tuples(st.floats(1.5, 40.0), st.floats(2.0, 30.0)), min_size=1, max_size=40))
def test_the_sum_never_exceeds_that_of_the_means(stream: list[tuple[float, float]]) -> None:
    running = RunningMean()
    allowed = spent = 0.0
    for difficulty, mean in stream:
        most = 4 * int(mean)
        (count,) = running.allocate([curve(difficulty, most)], [mean], [1], [100])
        allowed, spent = allowed + mean, spent + count
        assert 1 <= count <= most
        assert spent <= allowed + 1e-6
    usage = running.usage
    assert usage.pictures == len(stream)
    assert usage.mean == pytest.approx(spent / (100 * len(stream)))


def test_hard_pictures_get_more_and_the_mean_is_reached() -> None:
    running = RunningMean()
    counts: dict[float, list[int]] = {3.0: [], 30.0: []}
    for number in range(200):
        difficulty = 30.0 if number % 4 == 0 else 3.0
        counts[difficulty] += running.allocate([curve(difficulty, 80)], [20.0], [5], [100])
    easy, hard = (sum(of[-20:]) / 20 for of in counts.values())
    assert hard > 2 * easy
    assert running.usage.mean == pytest.approx(0.2, abs=0.004)
    assert running.usage.deviation > 0.05


def test_a_stream_of_questions_keeps_its_mean(llava_engine: Engine, picture: Picture) -> None:
    shown = [Image.new("RGB", (60, 60), "red") if n % 2 else picture(60, 60, n) for n in range(10)]
    kept = []
    for number, one in enumerate(shown):
        answer = llava_engine.chat([user_message("What?", one)], PRUNING, GENERATION)
        kept.append(answer.usage.stages[0].visual_tokens[0])
        assert sum(kept) <= 6 * len(kept)
        usage = answer.usage.allocation
        assert usage is not None
        assert usage.stream is not None
        assert usage.stream.pictures == number + 1
        assert usage.stream.mean == pytest.approx(sum(kept) / 16 / len(kept))
    assert kept[0] == 6
    assert min(kept[::2]) > max(kept[1::2])
    # Another pruning is another stream, and forgetting the pictures does not end one.
    other = llava_engine.chat([user_message("What?", shown[0])], Pruning(**{**PRUNING.model_dump(), "keep": 0.5}))
    assert other.usage.allocation is not None
    assert other.usage.allocation.stream is not None
    assert other.usage.allocation.stream.pictures == 1
    llava_engine.forget()
    again = llava_engine.chat([user_message("What?", shown[0])], PRUNING, GENERATION)
    assert again.usage.allocation is not None
    assert again.usage.allocation.stream is not None
    assert again.usage.allocation.stream.pictures == 11


def test_batches_of_a_stream_share_the_mean(llava_engine: Engine, picture: Picture) -> None:
    def batch(*pictures: Image.Image) -> list[int]:
        answers = llava_engine.batch([[user_message("What?", one)] for one in pictures], PRUNING, GENERATION)
        return [answer.usage.stages[0].visual_tokens[0] for answer in answers]

    plain = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue", "green")]
    batch(plain[0], picture(60, 60, 1))
    hard = batch(picture(60, 60, 2), picture(60, 60, 3))
    easy = batch(*plain)
    assert min(hard) > max(easy)


def test_a_stream_needs_an_allocation() -> None:
    with pytest.raises(InvalidInput, match="mean_over=stream is about what an allocation gives each picture"):
        Pruning(mean_over="stream")
    assert Pruning(allocation="coverage", mean_over="stream").label == "tops:allocation=coverage:mean_over=stream"
