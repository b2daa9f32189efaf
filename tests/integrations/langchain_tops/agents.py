"""What makes mini, which was never taught to use tools, act in an agent loop."""

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import ToolMessage


class ForcedCalls(AgentMiddleware[Any, Any, Any]):
    """Makes the model call a tool so many times, by a grammar, and then answer."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        return handler(self._with_choice(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(self._with_choice(request))

    def _with_choice(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        calls = sum(isinstance(message, ToolMessage) for message in request.messages)
        if calls < self.number:
            return request.override(tool_choice="any", model_settings={"parallel_tool_calls": False})
        return request.override(tools=[], tool_choice=None)
