"""The serving benchmark's requests and figures; its servers are those of the tests of vllm_tops."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from benchmarks.serving import Body, Reply, Requests, Results, source, summary


def urls(bodies: list[Body]) -> list[str]:
    return [body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies]


def questions(bodies: list[Body]) -> list[str]:
    return [body["messages"][0]["content"][1]["text"] for body in bodies]


def test_distinct_pictures_never_come_twice() -> None:
    requests = Requests((40, 30), 8)
    seen = urls(requests.distinct(20) + requests.repeated(4) + requests.distinct(20))
    assert len(set(seen)) == 44
    data = base64.b64decode(seen[0].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (40, 30)


def test_repeated_pictures_come_with_new_questions() -> None:
    bodies = Requests((40, 30), 8).repeated(20)
    assert len(set(urls(bodies))) == 4
    assert len(set(questions(bodies))) == 20


def test_the_figures_of_a_side() -> None:
    replies = [
        Reply(first_token=0.1 * number, last_token=0.1 * number + 0.7, prompt_tokens=47, completion_tokens=8)
        for number in range(1, 20)
    ]
    figures = summary([3.0, 9.0, 4.0], replies)
    assert figures["requests_a_second"] == 4.0
    assert figures["first_token_s"] == pytest.approx(1.0)
    assert figures["first_token_p99_s"] == pytest.approx(1.98)
    assert figures["next_token_s"] == pytest.approx(0.1)
    assert figures["prompt_tokens"] == 47


@pytest.mark.parametrize(
    ("model", "size", "num_tokens"),
    [
        ("small", (336, 336), 576),
        ("small-next", (672, 672), 2928),
        ("llava-next-7b", (672, 672), 2928),
    ],
)
def test_a_published_size_is_a_checkpoint_without_weights(
    tmp_path: Path, model: str, size: tuple[int, int], num_tokens: int
) -> None:
    folder, options = source(model, tmp_path)
    assert options == ["--load-format", "dummy"]
    config = AutoConfig.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    made = processor(images=Image.new("RGB", size), text="user: <image>\nWhat is it?")
    assert made["input_ids"][0].count(config.image_token_id) == num_tokens


def test_a_stopped_run_is_continued_where_it_is_the_same(tmp_path: Path) -> None:
    path, point = tmp_path / "results.json", {"block_size": 32, "pictures": "distinct", "concurrency": 1}
    Results(path, {"model": "small"}).add([point | {"keep": "1.0"}, point | {"keep": "0.5"}])
    again = Results(path, {"model": "small"})
    assert again.has(point)
    assert not again.has(point | {"concurrency": 8})
    assert not Results(path, {"model": "mini"}).rows
