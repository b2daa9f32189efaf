"""Refusals and failures of a server as errors of the engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from tops_engine.errors import (
    ContextLengthError,
    InvalidImage,
    InvalidInput,
    ModelNotFound,
    ServerError,
    ServerTimeout,
    ServerUnavailable,
    TopsError,
)

# Parts of vLLM's messages about pictures that it cannot decode, and about prompts that are too long.
OF_PICTURES = ("Failed to load image", "Image dimensions", "cannot identify image")
OF_LENGTH = "context length"
# Parts of messages about encoded pictures: vLLM without its option, a model of another width, and servers that do not
# know them.
NO_EMBEDS, OF_WIDTH, UNKNOWN_EMBEDS = "--enable-mm-embeds", "hidden dimension mismatch", "image_embeds"
# The longest message of a server that is passed on.
MAX_MESSAGE = 500


def explained(error: Any, url: str, timeout: float) -> TopsError:
    """Return the engine's error for an error of the openai library. For status 404 use :func:`not_found`."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return ServerTimeout(
            f"{url} did not answer within {timeout:g} seconds; raise the timeout, or send less at once."
        )
    if isinstance(error, openai.APIConnectionError):
        cause = str(error.__cause__ or error) or type(error.__cause__).__name__
        if type(error.__cause__).__name__ == "ConnectError":
            return ServerError(
                f"No server answers at {url} ({cause}); start one, such as `tops serve MODEL`, or correct the address."
            )
        return ServerError(f"The connection to {url} broke ({cause}); ask again, or read the log of the server.")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, url)
    return ServerError(f"{url} failed: {_message(error)}")


def not_found(model: str, served: Sequence[str]) -> ModelNotFound:
    """Return the error for a model that the server does not have."""
    return ModelNotFound(f"The server has no model {model!r}; it has {_listed(served)}.")


def no_api(url: str) -> ServerError:
    """Return the error for a server that does not speak the protocol."""
    return ServerError(
        f"The server at {url} does not speak OpenAI's protocol; the address of a vLLM server ends in /v1."
    )


def _of_status(error: Any, url: str) -> TopsError:
    status, message = error.status_code, _message(error)
    if 300 <= status < 400:
        target = error.response.headers.get("location", "another address")
        return ServerError(f"{url} redirects to {target}; to send the pictures there, give that address.")
    if status in (401, 403):
        return ServerError(f"{url} refuses the API key: {message}")
    if status == 429:
        return ServerError(f"{url} is too busy: {message}")
    if status == 503:
        return ServerUnavailable(f"{url} takes no requests now ({status}): {message}")
    if status >= 500:
        return ServerError(f"{url} failed ({status}): {message}")
    if any(words in message for words in OF_PICTURES):
        return InvalidImage(f"The server cannot read a picture: {message}")
    if OF_WIDTH in message:
        return InvalidInput(f"The server has another model than the encoder; both need the same checkpoint: {message}")
    if NO_EMBEDS in message:
        return InvalidInput(
            f"{url} takes no encoded pictures; start vLLM with --enable-mm-embeds, for clients that you trust."
        )
    if UNKNOWN_EMBEDS in message:
        return InvalidInput(f"{url} does not take encoded pictures, as vLLM does with --enable-mm-embeds: {message}")
    if OF_LENGTH in message:
        return ContextLengthError(f"The prompt is too long for the server: {message}")
    return InvalidInput(f"The server refuses the request: {message}")


def _message(error: Any) -> str:
    """Return the message of the server as a sentence."""
    return _sentence(error.body, error.message)


def _sentence(body: Any, otherwise: str) -> str:
    """Return the message in the body of an error: a text, or a mapping that has it under one of several names."""
    if isinstance(body, Mapping):
        inner = (body.get(name) for name in ("error", "message", "detail"))
        body = next((value for value in inner if value), otherwise)
        return _sentence(body, otherwise) if isinstance(body, Mapping) else _sentence(str(body), otherwise)
    message = (body if isinstance(body, str) and body.strip() else otherwise).strip()
    message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} ..."
    return message if message.endswith((".", "!", "?")) else f"{message}."


def reported(error: Any) -> ServerError:
    """Return the error for an answer that holds an error and has the status of a success."""
    return ServerError(f"The server reports an error: {_sentence(error, 'it says nothing more')}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
