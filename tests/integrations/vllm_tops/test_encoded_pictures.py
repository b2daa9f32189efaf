"""Compare a vLLM server without our plugin, which gets encoded pictures, with one that prunes by the plugin."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Picture
from tests.integrations.vllm_tops.test_server import KEEP, NUM_KEPT, NUM_TOKENS, QUESTIONS, pictures
from tests.support.checkpoints import save_llava
from tops_engine.conversation.messages import user_message
from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.encoding.places import encoder_at
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput
from tops_engine.mini import mini_path
from tops_engine.remote import RemoteEngine
from tops_engine.settings import Generation, ModelSpec, Pruning

__all__ = ["pictures"]

pytestmark = pytest.mark.vllm

SHORT = Generation(max_tokens=24)
PRUNING = Pruning(keep=float(KEEP))

# No plugin is loaded, and the vision tower is not either.
WITHOUT_PLUGIN = {"VLLM_PLUGINS": ""}
LANGUAGE_MODEL_ONLY = ["--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0}']


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Serve mini without the plugin for encoded pictures, and pruned by the plugin."""
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, VLLM, environment, serving

    plain = [*VLLM, "serve", str(mini_path()), "--served-model-name", "mini", *OPTIONS, *LANGUAGE_MODEL_ONLY]
    pruned = [*TOPS, "serve", "mini", "--keep", KEEP, *OPTIONS]
    commands = [(plain, environment(**WITHOUT_PLUGIN)), (pruned, environment())]
    with serving(commands, tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def encoding(servers: list[Any]) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(servers[0].url, max_retries=0, timeout=120, encoder=encoder_at("here", device="cpu"))
    yield engine
    engine.close()


def test_answers_equal_those_of_the_plugin_and_of_the_engine(
    servers: list[Any], encoding: RemoteEngine, pictures: list[Image.Image]
) -> None:
    assert servers[0].metric_lines("tops_pruning_info") == []
    conversations = [[user_message(question, image)] for question in QUESTIONS for image in pictures]
    conversations.append([user_message("What is shown?", *pictures[:3])])
    here = Engine.load(ModelSpec(model="mini", device="cpu"))
    local = here.batch(conversations, Pruning(keep=float(KEEP), stages="first"), SHORT)
    plugin = RemoteEngine(servers[1].url, max_retries=0, timeout=120)
    pruned = plugin.batch(conversations, None, SHORT)
    encoded = encoding.batch(conversations, PRUNING, SHORT)
    plugin.close()
    for answer, by_plugin, expected in zip(encoded, pruned, local, strict=True):
        assert answer.text == by_plugin.text == expected.text
        assert answer.usage is not None
        assert by_plugin.usage is not None
        assert answer.usage.input_tokens == by_plugin.usage.input_tokens == expected.usage.input_tokens
    assert encoded[0].usage is not None
    assert encoded[0].usage.visual_tokens == NUM_KEPT


def test_a_share_of_the_bytes_travels(pictures: list[Image.Image]) -> None:
    encoder = PictureEncoder(ModelSpec(model="mini", device="cpu"))
    pruned, whole = (encoder.encode(pictures[0], Pruning(keep=keep)) for keep in (float(KEEP), 1.0))
    # Four bytes a number; base64 adds a third, and torch.save less than two kilobytes.
    for one, count in ((pruned, NUM_KEPT), (whole, NUM_TOKENS)):
        assert 0 < len(one.image_embeds) * 3 / 4 - count * 160 * 4 < 2000


def test_a_folder_gets_the_captions_of_the_plugin(
    servers: list[Any], pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(pictures):
        image.save(folder / f"{number}.png")
    texts: list[list[str]] = []
    for server, options in ((servers[0], ["--encode", "here", "--keep", KEEP]), (servers[1], [])):
        output = tmp_path / f"{len(texts)}.jsonl"
        command = [sys.executable, "-m", "tops_engine.cli", "caption", str(folder), "-o", str(output)]
        command += ["--server", server.url, "--max-tokens", "24", "--prompt", QUESTIONS[1], *options]
        subprocess.run(command, check=True, timeout=300)
        texts.append([json.loads(line)["caption"] for line in output.read_text().splitlines()[1:]])
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(pictures)


def test_the_chat_model_sends_tokens(servers: list[Any], pictures: list[Image.Image]) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_tops import ChatTOPSLlava, image_block

    asked = [HumanMessage([image_block(pictures[0]), {"type": "text", "text": QUESTIONS[1]}])]
    here = ChatTOPSLlava(base_url=servers[0].url, encode="here", device="cpu", keep=float(KEEP), max_tokens=24)
    there = ChatTOPSLlava(base_url=servers[1].url, max_tokens=24)
    answer, by_plugin = here.invoke(asked), there.invoke(asked)
    assert answer.content == by_plugin.content
    assert answer.usage_metadata is not None
    assert by_plugin.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == by_plugin.usage_metadata["input_tokens"]


def test_a_server_without_the_option_and_one_with_another_model_are_refused(
    servers: list[Any], pictures: list[Image.Image], picture: Picture, tmp_path: Path
) -> None:
    asked = [user_message("?", pictures[0])]
    refusing = RemoteEngine(servers[1].url, max_retries=0, encoder=encoder_at("here", device="cpu"))
    with pytest.raises(InvalidInput, match="takes no encoded pictures; start vLLM with --enable-mm-embeds"):
        refusing.chat(asked, PRUNING, SHORT)
    refusing.close()
    wider = PictureEncoder(ModelSpec(model=str(save_llava(tmp_path / "wider")), device="cpu"), Pruning(keep=4))
    other = RemoteEngine(servers[0].url, max_retries=0, encoder=wider)
    with pytest.raises(InvalidInput, match="The server has another model than the encoder"):
        other.chat([user_message("?", picture())], None, SHORT)
    other.close()
    # Both servers go on.
    assert RemoteEngine(servers[0].url, encoder=encoder_at("here", device="cpu")).chat(asked, PRUNING, SHORT).text


def test_a_checkpoint_of_the_published_layout_answers_as_with_the_plugin(picture: Picture, tmp_path: Path) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, VLLM, environment, serving

    # vLLM's attention on a CPU requires a head size of at least 32.
    folder = str(save_llava(tmp_path / "llava", num_attention_heads=2, num_key_value_heads=2))
    plain = [*VLLM, "serve", folder, *OPTIONS, *LANGUAGE_MODEL_ONLY]
    pruned = [*TOPS, "serve", folder, "--keep", "0.5", *OPTIONS]
    conversations = [[user_message("What is it?", picture(80, 60, seed))] for seed in range(6)]
    commands = [(plain, environment(**WITHOUT_PLUGIN)), (pruned, environment())]
    with serving(commands, tmp_path) as (without, plugin):
        # The checkpoint is the folder that the server states.
        encoding = RemoteEngine(without.url, encoder=encoder_at("here", device="cpu"))
        encoded = encoding.batch(conversations, Pruning(keep=0.5), SHORT)
        by_plugin = RemoteEngine(plugin.url).batch(conversations, None, SHORT)
    assert [answer.text for answer in encoded] == [answer.text for answer in by_plugin]
    assert [answer.usage.input_tokens for answer in encoded if answer.usage] == [
        answer.usage.input_tokens for answer in by_plugin if answer.usage
    ]
    assert len({answer.text for answer in encoded}) > 1
