"""Test the encoder service over real sockets: `tops encode-server` and its client."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from aiohttp import web
from tops_encoder.server import MAX_BODY, create_app

from tests.conftest import Picture
from tests.support.chat_server import ChatServer
from tests.tops_engine.remote.conftest import SAMPLE
from tops_engine.conversation.messages import user_message
from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.encoding.places import encoder_at
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, InvalidInput, ServerError
from tops_engine.remote import RemoteEngine
from tops_engine.remote.encoder_client import EncoderClient
from tops_engine.remote.encoding import Served
from tops_engine.settings import Generation, ModelSpec, Pruning

KEY = "a key of the encoder"
MINI = Served("mini", None)


@contextmanager
def running(encoder: PictureEncoder, key: str | None = None, port: int = 0) -> Iterator[str]:
    """Run a service and give its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(create_app(encoder, key), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def encoder() -> PictureEncoder:
    return PictureEncoder(ModelSpec(model="mini", device="cpu"), Pruning(keep=0.222))


@pytest.fixture(scope="module")
def url(encoder: PictureEncoder) -> Iterator[str]:
    with running(encoder) as url:
        yield url


def test_the_service_gives_what_its_encoder_gives(encoder: PictureEncoder, url: str, picture: Picture) -> None:
    client = encoder_at(url)
    client.connect(MINI)
    assert client.runs(None) == encoder.runs(None)
    for image in (SAMPLE, picture(70, 50)):
        assert client.encode(image, None) == encoder.encode(image)


def test_pictures_are_shared_by_encoders_and_go_on_when_one_is_down(encoder: PictureEncoder, picture: Picture) -> None:
    other = PictureEncoder(encoder.spec, encoder.pruning)
    with ExitStack() as stack:
        urls = [stack.enter_context(running(one)) for one in (encoder, other)]
        client = EncoderClient([urls[0], "http://127.0.0.1:9", urls[1]])
        client.connect(MINI)
        for seed in range(6):
            image = picture(60, 40, 100 + seed)
            assert client.encode(image, None).kept == 32
    assert other._known, "the second encoder got none"
    with pytest.raises(ServerError, match=r"No encoder answers at .*tops encode-server MODEL"):
        client.encode(SAMPLE, None)
    with pytest.raises(ServerError, match="No encoder answers at"):
        client.connect(MINI)


def test_a_client_of_a_server_notices_that_its_encoder_is_gone_and_back(encoder: PictureEncoder) -> None:
    mini = Engine.load(ModelSpec(model="mini", device="cpu"))
    with ChatServer(mini, Pruning(keep=0.222, stages="first")).running() as server:
        server.encoded = {encoder.encode(SAMPLE).image_embeds: SAMPLE}
        with running(encoder) as url:
            port = int(url.rpartition(":")[2])
            engine = RemoteEngine(server.url, max_retries=0, encoder=EncoderClient([url]))
            assert engine.connect() == ("mini", encoder.runs(None))
        for ask in (engine.connect, lambda: engine.chat([user_message("?", SAMPLE)])):
            with pytest.raises(ServerError, match="No encoder answers at"):
                ask()
        with running(encoder, port=port):
            assert engine.connect() == ("mini", encoder.runs(None))
            assert engine.chat([user_message("?", SAMPLE)], generation=Generation(max_tokens=4)).text
        engine.close()


def test_what_cannot_be_encoded_is_said_and_the_service_goes_on(url: str) -> None:
    client = EncoderClient([url])
    client.connect(MINI)
    for sent in (b"no picture", b"0" * (MAX_BODY + 1)):
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/encode", data=sent))
        answer = json.loads(failed.value.read())
        assert failed.value.code == 400
        assert answer["error"]["type"] == "InvalidImage"
    with pytest.raises(InvalidImage):
        client.encode(b"no picture", None)
    with pytest.raises(InvalidInput, match=r"The encoders prune by tops:.* and keep 0\.222, as they were started"):
        client.runs(Pruning(keep=0.5))
    assert client.runs(Pruning(keep=0.222)).budget == 0.222
    assert client.encode(SAMPLE, None).kept == 32


def test_another_model_or_pruning_is_refused(encoder: PictureEncoder, url: str) -> None:
    other = PictureEncoder(encoder.spec, Pruning(keep=0.5))
    with running(other) as second, pytest.raises(InvalidInput, match="differ in their model or pruning"):
        EncoderClient([url, second]).connect(MINI)


def test_only_programs_of_this_machine_or_with_the_key_get_an_answer(encoder: PictureEncoder, url: str) -> None:
    for headers in ({"Host": "evil.example:80"}, {"Origin": "http://evil.example"}):
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/encoder", headers=headers))
        assert failed.value.code == 403
    with running(encoder, KEY) as guarded:
        with pytest.raises(ServerError, match=r"refuses the request .401.*TOPS_API_KEY"):
            EncoderClient([guarded]).connect(MINI)
        client = EncoderClient([guarded], KEY)
        client.connect(MINI)
        assert client.encode(SAMPLE, None).kept == 32


def test_another_service_is_no_encoder(encoder: PictureEncoder) -> None:
    async def other(_: web.Request) -> web.Response:
        return web.json_response({"format": "tops encoder 2", "pruning": {}})

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/encoder", other)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    with pytest.raises(ServerError, match="is no encoder of this version"):
        EncoderClient([f"http://127.0.0.1:{runner.addresses[0][1]}"]).connect(MINI)
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
