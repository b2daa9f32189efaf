"""The visual budget of a conversation, on models that prune, on models that resize, and on unknown ones."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_tops import ChatTOPSLlava, VisualBudget, image_block
from langchain_tops.budgets import Decay
from PIL import Image

from tests.conftest import Picture
from tests.integrations.langchain_tops.conftest import SAMPLE
from tests.support.chat_server import ChatServer
from tests.support.checkpoints_qwen import save_qwen2_vl
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidInput
from tops_engine.media.images import open_image
from tops_engine.settings import ModelSpec, Pruning


def history(pictures: list[Any], question: str = "What number?", tool: str = "shot") -> list[Any]:
    """A question, and an agent's steps that returned a picture each."""
    messages: list[Any] = [SystemMessage("Be brief."), HumanMessage(question)]
    for number, picture in enumerate(pictures):
        call = {"name": tool, "args": {}, "id": f"c{number}"}
        block = picture if isinstance(picture, dict) else image_block(picture)
        messages += [AIMessage("", tool_calls=[call]), ToolMessage([block], tool_call_id=f"c{number}", name=tool)]
    return messages


def how(report: dict[str, Any]) -> list[str]:
    return [each["sent"] for each in report["pictures"]]


def after(report: dict[str, Any]) -> list[int]:
    return [each["after"] for each in report["pictures"]]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> ChatTOPSLlava:
    """A random model whose visual tokens depend on the size of the picture; it does not prune."""
    folder = save_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))
    return ChatTOPSLlava(model=str(folder), device="cpu", method="none", max_tokens=2)


def test_older_pictures_get_less_and_the_model_reads_what_the_report_says(
    model: ChatTOPSLlava, picture: Picture
) -> None:
    messages = history([picture(seed=seed) for seed in range(6)])
    before = copy.deepcopy(messages)
    fitted = VisualBudget(200).fit(messages, model)
    assert messages == before  # the history stays as it is
    report = fitted.report
    assert after(report) == [0, 0, 18, 37, 72, 72]  # keep=0.5 of mini's 144 tokens is 72
    assert how(report) == ["as text", "as text", "reduced", "reduced", "in full", "in full"]
    assert (report["before"], report["after"], report["max_visual_tokens"]) == (432, 199, 200)
    assert report["counted_by"] == "the model"
    assert fitted.messages[3].content == [{"type": "text", "text": "[Picture 1 from shot: left out]"}]
    answer = model.invoke(fitted.messages)
    pictures = answer.response_metadata["usage"]["pictures"]
    assert [one["keep"] for one in pictures] == [18, 37, None, None]
    assert sum(one["layer_average"] for one in pictures) == pytest.approx(199, abs=1)


@pytest.mark.parametrize("decay", ["half", "linear", lambda age, _tool, _relevance: 0.1**age])
def test_a_budget_that_fits_changes_nothing(model: ChatTOPSLlava, picture: Picture, decay: Decay) -> None:
    messages = history([picture(seed=seed) for seed in range(3)])
    fitted = VisualBudget(3 * 72, decay).fit(messages, model)
    assert fitted.messages == messages
    assert how(fitted.report) == ["in full"] * 3


def test_identical_pictures_are_sent_once_whatever_their_form(model: ChatTOPSLlava, tmp_path: Path) -> None:
    again = tmp_path / "again.bmp"
    Image.open(SAMPLE).convert("RGB").save(again)
    messages = history([image_block(SAMPLE), {"type": "image", "url": str(again)}, image_block(SAMPLE)])
    fitted = VisualBudget(0.5).fit(messages, model)
    assert how(fitted.report) == ["repeated", "repeated", "in full"]
    assert fitted.report["max_visual_tokens"] == 2048
    assert fitted.messages[3].content == [{"type": "text", "text": "[Picture 1 from shot: same as picture 3]"}]
    assert model.invoke(fitted.messages).response_metadata["usage"]["visual_tokens"] == 144


@pytest.mark.parametrize(
    ("question", "block"),
    [
        ("What changed since picture 1?", {}),
        ("What is in Screenshot 1?", {}),
        ("What does login.png show?", {"extras": {"name": "login.png"}}),
        ("What does the login page show?", {"extras": {"filename": "Login-Page"}}),
    ],
)
def test_pictures_that_the_question_names_stay(
    model: ChatTOPSLlava, picture: Picture, question: str, block: dict[str, Any]
) -> None:
    pictures = [image_block(picture()) | block, *(picture(seed=seed) for seed in range(1, 15))]
    kept = VisualBudget(150).fit(history(pictures, question), model)
    assert after(kept.report)[0] == after(kept.report)[-1] == 72
    other = VisualBudget(150).fit(history(pictures, "What changed in picture 11?"), model)
    assert after(other.report)[0] == 0
    assert after(other.report)[10] == 72


def test_a_budget_of_its_own_protects_a_picture(model: ChatTOPSLlava, picture: Picture) -> None:
    marked = [image_block(picture(), keep=1.0), image_block(picture(seed=1), keep=0.25)]
    fitted = VisualBudget(300).fit(history([*marked, *(picture(seed=seed) for seed in range(2, 9))]), model)
    assert after(fitted.report)[:2] == [144, 36]
    assert fitted.messages[3].content == [marked[0]]
    assert how(fitted.report)[2:6] == ["as text"] * 4
    # Not even protected pictures may exceed the budget together.
    tight = VisualBudget(100).fit(history([*marked, picture(seed=2)]), model)
    assert tight.report["after"] <= 100
    assert after(tight.report)[-1] >= 60


def test_the_pictures_of_the_question_stay(model: ChatTOPSLlava, picture: Picture) -> None:
    messages = history([picture(seed=seed) for seed in range(1, 9)])
    messages[1] = HumanMessage([image_block(picture()), {"type": "text", "text": "Where is this?"}])
    fitted = VisualBudget(200).fit(messages, model)
    assert after(fitted.report)[0] == after(fitted.report)[-1] == 72


def test_ten_pictures_in_one_result_share_the_budget(model: ChatTOPSLlava, picture: Picture) -> None:
    blocks = [image_block(picture(seed=seed)) for seed in range(10)]
    messages = [HumanMessage("Which?"), ToolMessage([*blocks], tool_call_id="1")]
    fitted = VisualBudget(400).fit(messages, model)
    assert after(fitted.report) == [40] * 10
    few = VisualBudget(40).fit(messages, model)
    assert after(few.report) == [0] * 8 + [20, 20]


def test_a_function_sees_the_tool_and_the_relevance(model: ChatTOPSLlava, picture: Picture) -> None:
    seen = []

    def decay(age: int, tool: str | None, relevance: float) -> float:
        seen.append((age, tool, round(relevance, 2)))
        return 0.0 if tool == "map" else 0.5

    messages = [
        *history([picture(seed=1)], tool="map"),
        *history([picture(seed=2)], "Where is the red train station?"),
        ToolMessage(
            [image_block(picture(seed=3)), {"type": "text", "text": "The station"}], tool_call_id="x", name="cam"
        ),
    ]
    fitted = VisualBudget(200, decay).fit(messages, model)
    assert seen == [(2, "map", 0.0), (1, "shot", 0.0), (0, "cam", 0.4)]
    assert how(fitted.report) == ["as text", "in full", "in full"]


def test_a_file_that_vanished_is_said_and_the_newest_is_left_to_the_model(
    model: ChatTOPSLlava, picture: Picture, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    for path, seed in ((old, 1), (new, 2)):
        picture(seed=seed).save(path)
    messages = history([{"type": "image", "url": str(path)} for path in (old, new)])
    budget = VisualBudget(500)
    assert how(budget.fit(messages, model).report) == ["in full", "in full"]
    old.unlink()
    fitted = budget.fit(messages, model)
    assert how(fitted.report) == ["missing", "in full"]
    assert fitted.messages[3].content == [{"type": "text", "text": "[Picture 1 from shot: file removed]"}]
    model.invoke(fitted.messages)
    new.unlink()
    fitted = budget.fit(messages, model)
    assert how(fitted.report) == ["missing", "unchanged"]
    with pytest.raises(InvalidInput, match=r"new\.png"):
        model.invoke(fitted.messages)


def test_a_model_that_does_not_prune_gets_smaller_pictures(qwen: ChatTOPSLlava, picture: Picture) -> None:
    messages = history([picture(280, 168, seed=seed) for seed in range(5)])
    fitted = VisualBudget(150).fit(messages, qwen)
    assert fitted.report["before"] == 5 * 60  # 280 x 168 pixels in patches of 28 x 28
    assert how(fitted.report) == ["as text", "as text", "reduced", "in full", "in full"]
    usage = qwen.invoke(fitted.messages).response_metadata["usage"]
    assert usage["visual_tokens"] == fitted.report["after"] <= 150
    again = VisualBudget(150).fit(messages, qwen)
    assert again.messages == fitted.messages  # the same bytes, so that caches of prompts find them


def test_pruning_counts_pictures_of_any_size(qwen: ChatTOPSLlava, picture: Picture) -> None:
    model = qwen.model_copy(update={"method": "random"})
    messages = history([picture(280, 168, seed=1), picture(224, 140, seed=2), picture(56, 56, seed=3)])
    fitted = VisualBudget(40).fit(messages, model, {"keep": 0.5})
    assert [each["before"] for each in fitted.report["pictures"]] == [30, 20, 2]
    usage = model.invoke(fitted.messages, keep=0.5).response_metadata["usage"]
    assert usage["layer_average"] == pytest.approx(fitted.report["after"], abs=1)
    assert fitted.report["after"] <= 40
    bound = model.bind(keep=0.5)
    assert VisualBudget(40).fit(messages, bound).report == fitted.report


def test_a_method_that_cannot_keep_few_tokens_gets_what_it_can_keep(model: ChatTOPSLlava, picture: Picture) -> None:
    fastv = model.model_copy(update={"method": "fastv", "keep": 0.6})
    messages = history([picture(seed=seed) for seed in range(5)])
    fitted = VisualBudget(220).fit(messages, fastv)
    assert "reduced" in how(fitted.report)
    usage = fastv.invoke(fitted.messages).response_metadata["usage"]
    assert usage["layer_average"] == pytest.approx(fitted.report["after"], abs=2)


def test_a_server_counts_and_gets_smaller_pictures(qwen: ChatTOPSLlava, picture: Picture) -> None:
    engine = shared_engine(ModelSpec(model=qwen.model, device="cpu"))
    with ChatServer(engine, Pruning(method="none")).running() as server:
        model = ChatTOPSLlava(base_url=server.url, max_tokens=2)
        blocks = [image_block(picture(280, 168, seed=seed)) for seed in range(3)]
        messages: list[Any] = [HumanMessage([*blocks, {"type": "text", "text": "So?"}])]
        fitted = VisualBudget(120).fit(messages, model)
        assert fitted.report["before"] == 3 * model.get_num_visual_tokens(280, 168) > 180
        assert how(fitted.report) == ["reduced"] * 3
        counted = model.get_num_tokens_from_messages
        assert counted(messages) - counted(fitted.messages) == fitted.report["before"] - fitted.report["after"]
        assert model.invoke(fitted.messages).usage_metadata is not None


def test_an_unknown_formula_is_said_and_the_pictures_are_left(
    picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    unknown, messages = FakeListChatModel(responses=["yes"]), history([picture(seed=1), picture(seed=2)])
    budget = VisualBudget(50)
    with caplog.at_level(logging.WARNING):
        fitted = [budget.fit(messages, unknown) for _ in range(2)][-1]
    assert len(caplog.records) == 1
    assert fitted.messages == messages
    assert how(fitted.report) == ["unchanged", "unchanged"]
    assert (fitted.report["before"], fitted.report["after"]) == (None, None)
    assert "give formula=" in fitted.report["note"]
    given = VisualBudget(50, formula=lambda width, height: width * height // 784).fit(messages, unknown)
    assert given.report["before"] == 8
    assert given.report["counted_by"] == "the given formula"


class GPT(FakeListChatModel):
    """A chat model that LangChain's tracing calls gpt-4o."""

    model: str = "gpt-4o"


def test_detail_low_and_marks_are_respected_when_resizing() -> None:
    first, second, *others = (Image.new("RGB", (1280, 800), colour) for colour in ("red", "blue", "white", "black"))
    url = "data:image/png;base64," + image_block(first)["base64"]
    low = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    messages = history([low, image_block(second, keep=0.25), *others])
    fitted = VisualBudget(2600).fit(messages, GPT(responses=["yes"]))
    assert [each["before"] for each in fitted.report["pictures"]] == [85, 255, 1105, 1105]
    assert after(fitted.report) == [85, 255, 1105, 1105]
    assert fitted.messages[3].content == [low]
    small: Any = fitted.messages[5].content[0]
    assert "extras" not in small
    assert open_image(small["base64"]).size == (500, 312)  # one tile


def test_pictures_at_web_addresses_are_left(model: ChatTOPSLlava, picture: Picture) -> None:
    web = {"type": "image", "url": "https://example.org/a.png"}
    fitted = VisualBudget(80).fit(history([web, picture(seed=1), picture(seed=2)]), model)
    assert how(fitted.report) == ["unchanged", "as text", "in full"]


def test_histories_without_pictures_pass(model: ChatTOPSLlava) -> None:
    budget = VisualBudget(100)
    for messages in ([], [HumanMessage("Hello")], [HumanMessage([]), AIMessage("")]):
        fitted = budget.fit(messages, model)
        assert fitted.messages == messages
        assert fitted.report == {"max_visual_tokens": 100, "before": 0, "after": 0, "pictures": []}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"max_visual_tokens": 0}, "max_visual_tokens=0 is not allowed; give a whole number of tokens, or a share"),
        ({"max_visual_tokens": 1.5}, "max_visual_tokens=1.5 is not allowed"),
        ({"max_visual_tokens": True}, "max_visual_tokens=True is not allowed"),
        ({"max_visual_tokens": "all"}, "max_visual_tokens='all' is not allowed"),
        ({"max_visual_tokens": 9, "decay": "fast"}, "decay='fast' is not allowed; give 'half', 'linear' or a function"),
        ({"max_visual_tokens": 9, "min_picture_tokens": 1}, "min_picture_tokens=1 is not allowed"),
        ({"max_visual_tokens": 9, "formula": 85}, "formula is not a function"),
    ],
)
def test_arguments_that_are_not_allowed_are_refused_at_once(arguments: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as error:
        VisualBudget(**arguments)
    assert reason in str(error.value)


def test_budgets_over_the_context_and_bad_marks_are_refused(model: ChatTOPSLlava, picture: Picture) -> None:
    with pytest.raises(InvalidInput, match="more than the context of the model, 4096 tokens; give less, or a share"):
        VisualBudget(5000).fit([], model)
    with pytest.raises(InvalidInput, match=r"max_visual_tokens=0\.5 is a share of the context, and the profile"):
        VisualBudget(0.5).fit([], FakeListChatModel(responses=["yes"]))
    bad = image_block(picture()) | {"extras": {"keep": 7.5}}
    with pytest.raises(InvalidInput, match=r"keep=7\.5 of a picture or video is not allowed"):
        VisualBudget(100).fit(history([bad]), model)


@pytest.mark.parametrize("confident", [0.01, 1.0])
def test_a_cascade_is_counted_at_its_last_budget(model: ChatTOPSLlava, picture: Picture, confident: float) -> None:
    cascade = model.model_copy(update={"keep": (0.222, 1.0), "confident": confident})
    messages = history([picture(seed=seed) for seed in range(6)])
    fitted = VisualBudget(200).fit(messages, cascade)
    assert after(fitted.report) == [0, 0, 0, 18, 37, 144]
    usage = cascade.invoke(fitted.messages).response_metadata["usage"]
    # The two reduced pictures have the same budget in each reading, the newest has those of the cascade.
    assert [one["keep"] for one in usage["pictures"]] == [18, 37, None]
    readings = [step["layer_average"] for step in usage["cascade"]["steps"]]
    expected = [18 + 37 + 0.222 * 144, 18 + 37 + 144]
    assert readings == pytest.approx(expected[: usage["cascade"]["answered_by"]], abs=1)
    assert len(readings) == (1 if confident == 0.01 else 2)
    assert VisualBudget(6 * 144).fit(messages, cascade).messages == messages


@pytest.mark.parametrize("limit", [{"flops": 0.5}, {"kv_mb": 20.0}, {"first_token_ms": 50.0}])
def test_a_limit_of_cost_and_a_visual_budget_exclude_each_other(
    model: ChatTOPSLlava, picture: Picture, limit: dict[str, float]
) -> None:
    with pytest.raises(InvalidInput, match="already limits the cost of the whole prompt, so a visual budget cannot"):
        VisualBudget(200).fit(history([picture()]), model, limit)
    assert VisualBudget(200).fit([HumanMessage("Hello")], model, limit).report["pictures"] == []


@pytest.mark.parametrize("budget", [{"keep": (0.222, 0.4)}, {"flops": 0.5}])
def test_a_server_takes_neither_a_cascade_nor_a_limit_of_cost(picture: Picture, budget: dict[str, Any]) -> None:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    with ChatServer(engine, Pruning(keep=0.5)).running() as server:
        remote = ChatTOPSLlava(base_url=server.url, **budget)
        with pytest.raises(InvalidInput, match="A server reads a prompt once, with one budget; give keep a single"):
            VisualBudget(60).fit(history([picture()]), remote)
