"""Run an agent that can look again: its tool returns a part of the picture as a new picture.

python docs/examples/langchain/zoom_agent.py wide.png "What number is written?" --model Qwen/Qwen3-VL-8B-Instruct
python docs/examples/langchain/zoom_agent.py wide.png "What number is written?"

mini was not trained to use tools. Its calls are well-formed, because a grammar restricts what it writes, but it cannot
judge when to call a tool, and it loses the question among markup and JSON. The middleware ``guide_mini`` makes it look
first and then answer about the newest picture alone. Other models run without it.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_tops import ChatTOPSLlava, image_block
from PIL import Image

from tops_engine.media.images import open_image

Side = Literal["left", "right"]


def zoom_tool(picture: Image.Image) -> BaseTool:
    """Return a tool that shows one half of a picture as large as the model sees the whole."""

    @tool
    def zoom(side: Side) -> list[Any]:
        """Look closer at one side of the picture."""
        middle = picture.width // 2
        left, right = (0, middle) if side == "left" else (middle, picture.width)
        half = picture.crop((left, 0, right, picture.height))
        return [{"type": "text", "text": f"The {side} side:"}, image_block(half)]

    return zoom


@wrap_model_call
def guide_mini(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Look first, then answer the question about the newest picture."""
    results = [message for message in request.messages if isinstance(message, ToolMessage)]
    if not results:
        return handler(request.override(tool_choice="any"))
    question = next(message.text for message in request.messages if isinstance(message, HumanMessage))
    pictures = [block for block in results[-1].content_blocks if block["type"] == "image"]
    content: list[Any] = [*pictures, {"type": "text", "text": question}]
    return handler(request.override(messages=[HumanMessage(content)], tools=[], tool_choice=None))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of the visual tokens to keep")
    given = parser.parse_args(arguments)

    picture = open_image(given.picture)
    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    middleware = [guide_mini] if given.model == "mini" else []
    agent: Any = create_agent(model, [zoom_tool(picture)], middleware=middleware)
    question = HumanMessage([image_block(picture), {"type": "text", "text": given.question}])
    for update in agent.stream({"messages": [question]}, stream_mode="updates"):
        for step in update.values():
            for message in step["messages"]:
                calls = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
                pictures = ["[picture]" for block in message.content_blocks if block["type"] == "image"]
                print(f"{message.type}:", *filter(None, [message.text, *calls, *pictures]))


if __name__ == "__main__":
    main()
