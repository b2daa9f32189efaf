"""Start real `vllm serve` processes, pruned and unpruned."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from openai import OpenAI

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
TOPS = [sys.executable, "-m", "tops_engine.cli"]

# Chunks of 64 tokens, so that prompts with two or more pictures need several. Blocks of 32 tokens, so that short
# prompts fill some blocks for the prefix cache.
OPTIONS = [
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--block-size", "32"),
    *("--max-num-seqs", "32", "--max-num-batched-tokens", "64"),
]

STARTS_WITHIN = 400.0


@dataclass(frozen=True)
class Server:
    """A server that answers at ``url``."""

    url: str
    process: "subprocess.Popen[bytes]"

    @property
    def client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=0)

    def metric_lines(self, name: str) -> list[str]:
        """Return the lines of a metric in ``/metrics``, one for each combination of labels."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines: list[str] = response.read().decode().splitlines()
        return [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.metric_lines(name))


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for vLLM on a small machine without a GPU or network, with the given variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOPS_")}
    return (
        kept
        | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        | variables
    )


def second_runner(folder: Path) -> dict[str, str]:
    """Return the variables with which vLLM uses its second model runner, the default on GPUs, on a CPU.

    Its kernels are run by Triton's interpreter. The folder gets the declaration by which vLLM finds it.
    """
    declared = folder / "triton_interpreted-0.dist-info"
    declared.mkdir(parents=True, exist_ok=True)
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: triton-interpreted\nVersion: 0\n")
    (declared / "entry_points.txt").write_text("[triton.backends]\ncpu = interpreted\n")
    paths = [str(folder), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}


def as_url(image: Image.Image) -> str:
    """Return the picture as a PNG in a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def asking(question: str, *urls: str, **options: Any) -> dict[str, Any]:
    """Return a request for mini's greedy answer to a question about pictures."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return {"model": "mini", "messages": [message], "temperature": 0, "max_tokens": 24} | options


@contextmanager
def serving(
    commands: Sequence[tuple[Sequence[str], dict[str, str]]], logs: Path, port: int | None = None
) -> Iterator[list[Server]]:
    """Start several servers at once, each from a command and its environment, and stop them at the end."""
    servers: list[Server] = []
    try:
        for number, (command, variables) in enumerate(commands):
            listens_to = port or free_port()
            with (logs / f"server{number}.log").open("w") as log:
                process = subprocess.Popen(
                    [*command, "--port", str(listens_to)],
                    env=variables,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            servers.append(Server(f"http://127.0.0.1:{listens_to}", process))
        for number, server in enumerate(servers):
            _wait(server, logs / f"server{number}.log")
        yield servers
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        for server in servers:
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(30)
            # The engine process can outlive its server.
            with suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)


def refusal(command: Sequence[str], variables: dict[str, str]) -> str:
    """Run a command that must fail and return the last line of its error output."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode not in (0, None), done.stdout
    return done.stderr.strip().splitlines()[-1]


def _wait(server: Server, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end:
        assert server.process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{server.url}/health").close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-4000:])


def running_in_group(group: int) -> list[int]:
    """Return the processes of a process group that have not ended."""
    running = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                running.append(int(stat.parent.name))
    return running


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
