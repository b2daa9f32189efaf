"""The chat model as LangChain's users meet it: options, messages, streams, usage, caches, callbacks."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langchain.chat_models import base, init_chat_model
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, trim_messages
from langchain_core.runnables import ConfigurableField
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_tops import ChatTOPSLlava, image_block
from PIL import Image
from pydantic import ValidationError

from tests.integrations.langchain_tops.conftest import SAMPLE, asking
from tests.support.checkpoints_qwen import save_qwen3_vl
from tops_engine.conversation.messages import user_message
from tops_engine.engine import shared_engine
from tops_engine.errors import ContextLengthError, InvalidInput, ModelNotFound
from tops_engine.settings import Generation, ModelSpec, Pruning, pruning_fields

MINI = ModelSpec(model="mini", device="cpu")


def joined(chunks: Any) -> AIMessageChunk:
    first, *rest = chunks
    for chunk in rest:
        first = first + chunk
    assert isinstance(first, AIMessageChunk)
    return first


def test_every_option_of_the_engine_is_a_field_with_its_description() -> None:
    fields = {field.alias or name: field for name, field in ChatTOPSLlava.model_fields.items()}
    for settings in (ModelSpec, Generation):
        for name, field in settings.model_fields.items():
            assert fields[name].description == field.description
            assert fields[name].metadata == field.metadata
    for name, (field, methods) in pruning_fields().items():
        description = fields[name].description or ""
        assert description.startswith(field.description or "")
        assert all(method in description for method in methods)


def test_unset_options_have_the_engines_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOPS_MODEL", raising=False)
    model = ChatTOPSLlava()
    assert model.model == "llava-hf/llava-1.5-7b-hf"
    assert model.keep == Pruning().keep
    assert model.max_tokens == Generation().max_tokens


def test_a_message_of_the_model_at_the_end_is_continued(model: ChatTOPSLlava, photo: Any) -> None:
    question = asking("Describe the picture.", photo)
    whole = model.invoke(question).text
    begun = whole[: whole.index(",")]
    messages = [*question, AIMessage(begun)]
    answer = model.invoke(messages)
    assert begun + answer.text == whole
    assert joined(model.stream(messages)).text == answer.text
    used: Any = model.invoke(messages, keep=1.0).usage_metadata
    assert model.get_num_tokens_from_messages(messages) == used["input_tokens"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temprature": 3}, "no option 'temprature'; did you mean 'temperature'?"),
        ({"kepe": 0.3}, "did you mean 'keep'?"),
        ({"keep": 7.5}, "keep=7.5 is not allowed"),
        ({"max_tokens": 0}, "max_tokens=0 is not allowed"),
        ({"method": "magic"}, "There is no method 'magic'"),
        ({"method": "random", "alpha": 0.3}, "There is no option 'alpha'"),
        ({"device": "tpu"}, "device='tpu' is not allowed"),
    ],
)
def test_options_that_are_not_allowed_are_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as error:
        ChatTOPSLlava(**options)
    assert reason in str(error.value)
    with pytest.raises(InvalidInput) as call_error:
        ChatTOPSLlava(model="mini", device="cpu").invoke("Hello", **options)
    assert reason in str(call_error.value) or "tpu" in reason


def test_other_chat_models_names_are_understood() -> None:
    model = ChatTOPSLlava(model_name="mini", max_new_tokens=7, stop_sequences="END", lambda_=2)
    assert (model.model, model.max_tokens, model.stop) == ("mini", 7, ("END",))
    assert model._identifying_params["pruning"]["lambda"] == 2.0


def test_constructing_loads_nothing() -> None:
    spec = ModelSpec(model="./nowhere")
    model = ChatTOPSLlava(model=spec.model)
    assert not shared_engine(spec).is_loaded
    with pytest.raises(ModelNotFound):
        model.invoke("Hello")


def test_the_answer_is_the_engines(model: ChatTOPSLlava, photo: Any) -> None:
    shared_engine(MINI).unload()
    message = model.invoke(asking("What number is written?", photo))
    answer = shared_engine(MINI).chat([user_message("What number is written?", SAMPLE)], Pruning(keep=0.5))
    assert message.content == answer.text == "5"
    usage = message.usage_metadata
    assert usage is not None
    entered = sum(answer.usage.stages[0].visual_tokens)
    assert usage["input_tokens"] == answer.usage.prompt_tokens - 144 + entered
    assert usage["output_tokens"] == answer.usage.completion_tokens
    assert usage["input_token_details"] == {
        "cache_read": 0,
        "image": 144,
        "image_kept": entered,
        "image_layer_average": round(answer.usage.layer_average),
    }
    metadata = message.response_metadata
    assert metadata["model_name"] == "mini"
    assert metadata["finish_reason"] == "stop"
    assert metadata["pruning"]["method"] == "tops"
    assert [stage["layer"] for stage in metadata["usage"]["stages"]] == [0, 3, 6]
    assert metadata["flops"]["prefill"] > 0
    assert metadata["timings"]["total"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 2},
        {"stop": [" picture"]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["left", "right"]}}}},
        {"tools": [{"title": "look", "type": "object", "properties": {"zoom": {"type": "boolean"}}}]},
        {
            "tools": [{"title": "look", "type": "object", "properties": {"zoom": {"type": "boolean"}}}],
            "tool_choice": "any",
        },
        {
            "tools": [{"title": "look", "type": "object", "properties": {"zoom": {"type": "boolean"}}}],
            "tool_choice": "any",
            "max_tokens": 25,
        },
    ],
    ids=str,
)
def test_a_stream_adds_up_to_the_answer(model: ChatTOPSLlava, options: dict[str, Any]) -> None:
    whole = model.invoke("Hello", **options)
    chunks = list(model.stream("Hello", **options))
    streamed = joined(chunks)
    assert streamed.content == whole.content
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [
        (call["name"], call["args"]) for call in whole.tool_calls
    ]
    assert [call["args"] for call in streamed.invalid_tool_calls] == [call["args"] for call in whole.invalid_tool_calls]
    assert streamed.usage_metadata is not None
    assert whole.usage_metadata is not None
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert streamed.usage_metadata[name] == whole.usage_metadata[name]
    assert streamed.response_metadata.keys() == whole.response_metadata.keys()
    for name in ("model_name", "model_provider", "finish_reason", "pruning"):
        assert streamed.response_metadata[name] == whole.response_metadata[name]
    assert chunks[-1].chunk_position == "last"
    assert all(not chunk.response_metadata for chunk in chunks[:-1])


async def test_the_asynchronous_half_says_the_same(model: ChatTOPSLlava) -> None:
    whole = model.invoke("Hello")
    assert (await model.ainvoke("Hello")).content == whole.content
    assert joined([chunk async for chunk in model.astream("Hello")]).content == whole.content
    tokens = [
        event["data"]["chunk"].content
        async for event in model.astream_events("Hello", version="v2")
        if event["event"] == "on_chat_model_stream"
    ]
    assert "".join(tokens) == whole.content
    assert len(tokens) > 3


def test_options_of_one_call(model: ChatTOPSLlava, photo: Any) -> None:
    question = asking("What number is written?", photo)

    def kept(**options: Any) -> tuple[str, float]:
        metadata = model.invoke(question, **options).response_metadata
        return metadata["pruning"]["method"], metadata["usage"]["layer_average"]

    assert kept() == ("tops", 72.0)
    assert kept(keep=0.25) == ("tops", 36.0)
    assert kept(keep=1.0) == ("tops", 144.0)
    assert kept(method="random", keep=36) == ("random", 36.0)
    assert kept(schedule="0:48,4:24") == ("tops", 36.0)
    assert kept(method="divprune+fastv", keep=48, layer=2, merge=True) == ("divprune+fastv", 48.0)
    assert model.bind(keep=0.25).invoke(question).response_metadata["usage"]["layer_average"] == 36.0
    assert kept(keep=(0.25, 0.5), confident=1.0) == ("tops", 108.0)
    assert 35 < kept(flops=0.3)[1] < 38
    cascade = ChatTOPSLlava(model="mini", device="cpu", keep=(0.25, 1.0), confident=1e-9)
    assert cascade.invoke(question).response_metadata["usage"]["cascade"]["answered_by"] == 1
    limited = ChatTOPSLlava(model="mini", device="cpu", flops=0.3)
    assert limited.invoke(question, keep=0.5).response_metadata["usage"]["layer_average"] == 72.0
    scheduled = ChatTOPSLlava(model="mini", device="cpu", schedule="0:48,4:24", **{"alpha": 0.2})
    assert scheduled.invoke(question, keep=0.5).response_metadata["usage"]["layer_average"] == 72.0
    assert scheduled.invoke(question, method="divprune", keep=36).response_metadata["pruning"]["method"] == "divprune"


def test_configurable_fields(model: ChatTOPSLlava, photo: Any) -> None:
    configurable = model.configurable_fields(keep=ConfigurableField(id="keep"))
    answer = configurable.with_config({"configurable": {"keep": 0.25}}).invoke(asking("What number?", photo))
    assert answer.response_metadata["usage"]["layer_average"] == 36.0


def test_models_with_the_same_spec_share_an_engine(model: ChatTOPSLlava, monkeypatch: pytest.MonkeyPatch) -> None:
    model.invoke("Hello")
    assert shared_engine(MINI).is_loaded
    monkeypatch.setattr("tops_engine.loaded_model.load_family", lambda *_: pytest.fail("loaded again"))
    ChatTOPSLlava(model="mini", device="cpu", keep=0.1, temperature=1.0).invoke("Hello")


def test_stop_strings_of_the_call_replace_those_of_the_model() -> None:
    model = ChatTOPSLlava(model="mini", device="cpu", stop=["me"])
    whole = ChatTOPSLlava(model="mini", device="cpu").invoke("Hello").text
    assert model.invoke("Hello").content == whole[: whole.index("me")]
    assert model.invoke("Hello", stop=["picture"]).content == whole[: whole.index("picture")]
    assert model.invoke("Hello", stop=[]).content == whole
    one = ChatTOPSLlava(model="mini", device="cpu")
    stopped = whole[: whole.index("picture")]
    as_text: Any = "picture"
    assert one.invoke("Hello", stop=as_text).content == stopped
    assert one.bind(stop="picture").invoke("Hello").content == stopped
    assert one.invoke("Hello", stop_sequences="picture").content == stopped
    assert "".join(chunk.text for chunk in one.bind(stop="picture").stream("Hello")) == stopped
    assert "".join(chunk.text for chunk in model.stream("Hello", stop=["e a pic"])) == whole[: whole.index("e a pic")]


def test_a_cache_tells_models_apart_and_returns_what_it_has(photo: Any) -> None:
    cache = InMemoryCache()
    question = asking("What number is written?", photo)

    def answer(**options: Any) -> AIMessage:
        return ChatTOPSLlava(model="mini", device="cpu", cache=cache, **options).invoke(question)

    first = answer(keep=0.5)
    assert answer(keep=0.5).response_metadata["timings"] == first.response_metadata["timings"]
    for options in ({"keep": 0.25}, {"keep": 0.5, "alpha": 0.1}, {"keep": 0.5, "max_tokens": 9}, {"method": "random"}):
        assert answer(**options).response_metadata["timings"] != first.response_metadata["timings"]


def test_history_fallbacks_and_retries(model: ChatTOPSLlava, photo: Any) -> None:
    history = InMemoryChatMessageHistory()
    chain = RunnableWithMessageHistory(model, lambda: history, history_factory_config=[])
    chain.invoke(asking("What number is written?", photo))
    second = chain.invoke("What colour is the circle?")
    assert second.usage_metadata["input_token_details"]["image"] == 144, "the picture of the first turn is still there"
    assert len(history.messages) == 4

    broken = ChatTOPSLlava(model="./nowhere")
    assert broken.with_fallbacks([model]).invoke("Hello").text.startswith("Hello")
    with pytest.raises(ModelNotFound):
        broken.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke("Hello")


def test_usage_callbacks_see_the_model(model: ChatTOPSLlava) -> None:
    handler = UsageMetadataCallbackHandler()
    model.invoke("Hello", config={"callbacks": [handler]})
    list(model.stream("Hello", config={"callbacks": [handler]}))
    assert handler.usage_metadata["mini"]["output_tokens"] > 2


def test_a_stream_that_nobody_reads_blocks_nobody(model: ChatTOPSLlava) -> None:
    stream = model.stream("Hello")
    next(stream)
    assert model.invoke("Hello").text
    stream.close()  # type: ignore[attr-defined]


def test_eight_threads_get_the_answers_they_would_get_alone(model: ChatTOPSLlava, photo: Any) -> None:
    questions = [asking(text, photo) for text in ("What number is written?", "What colour is the circle?")] * 4
    alone = [model.invoke(question).text for question in questions[:2]] * 4
    answers: dict[int, str] = {}

    def ask(index: int) -> None:
        answers[index] = "".join(chunk.text for chunk in model.stream(questions[index]))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index] for index in range(8)] == alone


def test_counted_tokens_are_the_prompts(model: ChatTOPSLlava, photo: Any) -> None:
    messages = [SystemMessage("Be brief."), *asking("What number?", photo, photo)]
    usage = model.invoke(messages, keep=1.0).usage_metadata
    assert usage is not None
    assert model.get_num_tokens_from_messages(messages) == usage["input_tokens"]
    assert model.get_num_tokens("What number?") == len(shared_engine(MINI).family.tokenizer.encode("What number?"))
    tool = {"title": "look", "type": "object", "properties": {}}
    usage = model.bind_tools([tool]).invoke(messages, keep=1.0).usage_metadata
    assert usage is not None
    assert model.get_num_tokens_from_messages(messages, tools=[tool]) == usage["input_tokens"]


def test_long_histories_are_trimmed_by_the_models_own_count(model: ChatTOPSLlava, photo: Any) -> None:
    history = [*asking("One?", photo), AIMessage("Yes."), *asking("Two?", photo), AIMessage("No."), HumanMessage("So?")]
    trimmed = trim_messages(history, max_tokens=200, token_counter=model, strategy="last", start_on="human")
    assert [message.text for message in trimmed] == ["Two?", "No.", "So?"]


def test_a_prompt_over_the_context_is_refused_with_both_numbers(model: ChatTOPSLlava) -> None:
    with pytest.raises(ContextLengthError, match=r"needs \d+ positions and the model has 4096"):
        model.invoke("word " * 9000)


def test_tracing_parameters_and_profile(tmp_path: Path) -> None:
    model = ChatTOPSLlava(model="mini", temperature=0.5, stop=["x"])
    params = model._get_ls_params(model="other", max_tokens=3)
    assert params == {
        "ls_provider": "tops",
        "ls_model_type": "chat",
        "ls_model_name": "other",
        "ls_temperature": 0.5,
        "ls_max_tokens": 3,
        "ls_stop": ["x"],
    }
    profile = model.profile
    assert profile is not None
    assert profile["max_input_tokens"] == 4096
    assert profile["structured_output"]
    assert not profile["image_url_inputs"]
    urls = ChatTOPSLlava(model=str(tmp_path), allowed_image_hosts=["*"]).profile
    assert urls is not None
    assert urls["image_url_inputs"]
    assert "max_input_tokens" not in urls


def test_the_first_construction_takes_milliseconds() -> None:
    begun = time.perf_counter()
    ChatTOPSLlava(model="mini")
    assert time.perf_counter() - begun < 0.5


def test_init_chat_model_finds_the_model_after_the_documented_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # The table is private to LangChain: the documentation gives this line and says so.
    entry = ("langchain_tops", "ChatTOPSLlava", lambda cls, **options: cls(**options))
    monkeypatch.setitem(base._BUILTIN_PROVIDERS, "tops", entry)
    model = init_chat_model("tops:mini", keep=0.5, max_tokens=7)
    assert model == ChatTOPSLlava(model="mini", keep=0.5, max_tokens=7)
    chosen = init_chat_model("tops:mini", configurable_fields=("keep",), device="cpu", max_tokens=3)
    assert chosen.invoke("Hello", {"configurable": {"keep": 0.5}}).text == model.invoke("Hello", max_tokens=3).text


def test_boxes_are_in_the_metadata(tmp_path: Path) -> None:
    folder = save_qwen3_vl(tmp_path)
    entry = {"bbox_2d": [250, 250, 750, 750], "label": "cat"}
    schema = {"properties": {name: {"const": value} for name, value in entry.items()}, "required": list(entry)}
    model = ChatTOPSLlava(
        model=str(folder), device="cpu", json_schema=json.dumps(schema | {"type": "object"}), max_tokens=200
    )
    question = HumanMessage([image_block(Image.new("RGB", (80, 40))), {"type": "text", "text": "Find the cat."}])
    expected = [{"label": "cat", "picture": 0, "left": 20.0, "top": 10.0, "right": 60.0, "bottom": 30.0}]
    message = model.invoke([question])
    assert message.response_metadata["boxes"] == expected
    assert "points" not in message.response_metadata
    assert joined(model.stream([question])).response_metadata["boxes"] == expected
