"""Test `tops serve` against untrusted clients: URLs, image bombs, many requests at once, and disconnects."""

import asyncio
import http.server
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image, ImageOps

from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, Server, as_url, asking, environment, serving
from tops_engine.mini import mini_path

pytestmark = pytest.mark.vllm

SAMPLE = Path(mini_path()).with_name("sample.jpg")
QUESTION = "What number is written?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    command = [*TOPS, "serve", "mini", "--keep", "0.222", *OPTIONS]
    with serving([(command, environment())], tmp_path_factory.mktemp("logs")) as (started,):
        yield started


@pytest.fixture(scope="module")
def sample() -> Image.Image:
    return Image.open(SAMPLE).convert("RGB")


def refusal_of(server: Server, url: str) -> Any:
    """Return the error message for a question about this picture."""
    from openai import APIStatusError

    with pytest.raises(APIStatusError) as caught:
        server.client.chat.completions.create(**asking(QUESTION, url))
    return caught.value


def test_only_its_own_machine_reaches_it(server: Server) -> None:
    port = urlsplit(server.url).port
    # Another address of this machine stands in for an address in its network.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_no_address_in_a_request_is_fetched(server: Server) -> None:
    asked: list[str] = []

    class Neighbour(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Neighbour) as neighbour:
        threading.Thread(target=neighbour.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "none"):
            error = refusal_of(server, f"http://{host}:{neighbour.server_port}/sample.jpg")
            assert error.status_code == 400
            assert "data URLs" in str(error)
        neighbour.shutdown()
    assert not asked


def test_no_file_of_the_server_is_read(server: Server) -> None:
    assert "Cannot load local files" in str(refusal_of(server, SAMPLE.as_uri()))


@pytest.mark.parametrize("side", [9000, 20_000])
def test_a_small_file_with_many_pixels_is_refused_undecoded(server: Server, sample: Image.Image, side: int) -> None:
    bomb = as_url(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    begun = time.monotonic()
    assert "pixels" in str(refusal_of(server, bomb))
    assert time.monotonic() - begun < 5
    answer = server.client.chat.completions.create(**asking(QUESTION, as_url(sample)))
    assert answer.choices[0].message.content == " 5"


async def test_a_crowd_of_which_many_hang_up_leaves_nothing_behind(server: Server, sample: Image.Image) -> None:
    from openai import APIStatusError, AsyncOpenAI

    chance = random.Random(0)
    pictures = [as_url(turned) for turned in (sample, ImageOps.mirror(sample), ImageOps.flip(sample))]
    kinds = [asking(QUESTION, *pictures[:number], max_tokens=40) for number in range(4)]
    alone = [server.client.chat.completions.create(**kind).choices[0].message.content for kind in kinds]
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)

    async def patient(kind: int) -> None:
        answer = await client.chat.completions.create(**kinds[kind])
        assert answer.choices[0].message.content == alone[kind]

    async def follows(kind: int) -> None:
        stream = await client.chat.completions.create(**kinds[kind], stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == alone[kind]

    async def leaves_before_the_answer(kind: int) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.5)):
                await client.chat.completions.create(**kinds[kind] | {"max_tokens": 900}, extra_body=ENDLESS)

    async def leaves_within_the_answer(kind: int) -> None:
        stream = await client.chat.completions.create(**kinds[kind], stream=True, extra_body=ENDLESS)
        for _ in range(chance.randrange(1, 20)):
            await anext(stream)
        await stream.close()

    async def brings_no_picture(kind: int) -> None:
        broken = asking(QUESTION, *pictures[:kind], pictures[0][:200])
        with pytest.raises(APIStatusError):
            await client.chat.completions.create(**broken)

    people = [patient, follows, leaves_before_the_answer, leaves_within_the_answer, brings_no_picture]
    async with client:
        await asyncio.gather(*(chance.choice(people)(chance.randrange(4)) for _ in range(200)))
    await gone(server)
    assert server.client.chat.completions.create(**kinds[3]).choices[0].message.content == alone[3]


ENDLESS = {"ignore_eos": True}


async def gone(server: Server) -> None:
    """Wait until no request runs, waits or holds cache memory."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    end = time.monotonic() + 60
    while any(map(server.metric, names)):
        assert time.monotonic() < end, {name: server.metric(name) for name in names}
        await asyncio.sleep(0.2)
    assert all(server.metric_lines(name) for name in names)
