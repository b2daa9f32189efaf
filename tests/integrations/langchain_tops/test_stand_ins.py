"""What the visual budget sends in place of pictures: captions, references to a picture that shows nearly the same."""

import io
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_tops import ChatTOPSLlava, VisualBudget, VisualBudgetMiddleware, image_block
from langchain_tops.middleware import TAG
from PIL import Image, ImageDraw
from pydantic import Field

from tests.conftest import Picture
from tests.integrations.langchain_tops.agents import ForcedCalls
from tests.integrations.langchain_tops.test_visual_budget import after, history, how
from tests.support.chat_server import ChatServer
from tops_engine.engine import shared_engine
from tops_engine.errors import InvalidInput
from tops_engine.mini.scenes import generate
from tops_engine.settings import ModelSpec, Pruning


class Writer(FakeListChatModel):
    """A chat model that counts its calls."""

    asked: list[Any] = Field(default_factory=list)

    def _call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        self.asked.append(messages)
        return super()._call(messages, *args, **kwargs)


def test_a_picture_that_is_left_out_gets_a_caption_that_was_written_once(
    model: ChatTOPSLlava, picture: Picture
) -> None:
    writer = Writer(responses=["A  login\npage.", "word " * 100])
    budget = VisualBudget(80, captions=writer)
    pictures = [picture(seed=seed) for seed in range(3)]
    first = budget.fit(history(pictures), model)
    assert how(first.report) == ["as caption", "as caption", "in full"]
    assert first.messages[3].content[0]["text"] == "[Picture 1 from shot: left out, it shows: A login page.]"
    assert len(first.messages[5].content[0]["text"]) < 250
    assert budget.fit(history(pictures), model).messages == first.messages
    assert len(writer.asked) == 2
    assert writer.asked[0][0].content[0]["type"] == "image"


def test_the_model_itself_writes_captions(model: ChatTOPSLlava) -> None:
    pictures = [generate(seed, "test").image for seed in (3, 4, 5)]
    fitted = VisualBudget(80, captions=True).fit(history(pictures), model)
    assert how(fitted.report) == ["as caption", "as caption", "in full"]
    captions = [fitted.messages[place].content[0]["text"] for place in (3, 5)]
    assert len(set(captions)) == 2
    assert all("left out, it shows: " in caption for caption in captions)
    with pytest.raises(InvalidInput, match="captions='yes' is not allowed; give True, False or a chat model"):
        VisualBudget(80, captions="yes")  # type: ignore[arg-type]


def page(digit: int, cursor: bool = False) -> Image.Image:
    shot = Image.new("RGB", (504, 504), "white")
    drawing = ImageDraw.Draw(shot)
    drawing.text((40, 40), f"Order {digit}", fill="black", font_size=16)
    if cursor:
        drawing.rectangle((200, 200, 200, 216), fill="black")
    return shot


def saved(shot: Image.Image) -> bytes:
    stream = io.BytesIO()
    shot.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def test_pictures_that_are_nearly_the_same_are_sent_once(model: ChatTOPSLlava) -> None:
    shots = [page(3), page(4), saved(page(3)), page(3)]
    fitted = VisualBudget(500).fit(history(shots), model)
    # The digit that changed makes another picture; JPEG does not.
    assert how(fitted.report) == ["repeated", "in full", "nearly repeated", "in full"]
    assert fitted.messages[7].content == [
        {"type": "text", "text": "[Picture 3 from shot: nearly the same as picture 4]"}
    ]
    other = VisualBudget(500).fit(history([page(3), page(3, cursor=True), page(3).resize((252, 252))]), model)
    assert how(other.report) == ["in full", "in full", "in full"]


def test_a_server_that_takes_budgets_gets_one_for_each_picture(picture: Picture) -> None:
    engine = shared_engine(ModelSpec(model="mini", device="cpu"))
    with ChatServer(engine, Pruning(keep=0.5, stages="first")).running() as server:
        model = ChatTOPSLlava(base_url=server.url, keep=0.5, max_tokens=2)
        fitted = VisualBudget(100).fit(history([picture(seed=seed) for seed in range(3)]), model)
        assert fitted.report["counted_by"] == "the server"
        assert after(fitted.report) == [0, 26, 74]
        model.invoke(fitted.messages)
        # The count includes the tokens around a picture; the share is one of all its tokens.
        assert server.requests[-1]["mm_processor_kwargs"] == {"tops_keep": [0.175, 0.5]}
        # Without a keep of its own nothing says that the server takes budgets: pictures are resized.
        plain = VisualBudget(100).fit(history([picture(seed=1)]), ChatTOPSLlava(base_url=server.url, max_tokens=2))
        assert plain.report["counted_by"] == "the model"


class Runs(BaseCallbackHandler):
    """Notes the tags and metadata of the runs of chat models."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], dict[str, Any]]] = []

    def on_chat_model_start(self, *args: Any, tags: Any = None, metadata: Any = None, **kwargs: Any) -> None:
        self.seen.append((list(tags or ()), dict(metadata or {})))


def test_a_run_is_marked_for_tracers_and_a_budget_can_be_given_whole(model: ChatTOPSLlava, picture: Picture) -> None:
    @tool
    def look() -> list[Any]:
        """Look again."""
        return [image_block(picture())]

    budget, runs = VisualBudget(100, "linear"), Runs()
    middleware = VisualBudgetMiddleware(budget)
    assert middleware.budget is budget
    assert VisualBudgetMiddleware(100, "linear", min_picture_tokens=8).budget.min_picture_tokens == 8
    agent: Any = create_agent(model, [look], middleware=[ForcedCalls(1), middleware])
    answer = agent.invoke({"messages": [HumanMessage("What?")]}, {"callbacks": [runs]})["messages"][-1]
    assert isinstance(answer, AIMessage)
    assert [TAG in tags for tags, _ in runs.seen] == [True, True]
    assert [metadata["visual_tokens_after"] for _, metadata in runs.seen] == [0, 72]
    assert model.tags is None
