"""The visual budget as a middleware of LangChain's agents. This module alone needs the package ``langchain``."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables.config import run_in_executor

from langchain_tops.visual_budget import Fitted, VisualBudget

#: The tag of a run of the model behind the middleware.
TAG = "visual-budget"


class VisualBudgetMiddleware(AgentMiddleware[Any, Any, Any]):
    """Keeps the pictures of an agent's history within a number of visual tokens, before each call of the model.

    The history itself does not change. ``response_metadata["visual_budget"]`` of each answer states the tokens before
    and after, and what was done to each picture. The run of the model has the tag ``visual-budget`` and both numbers in
    its metadata, for LangSmith and other tracers.

    Args:
        budget: A :class:`VisualBudget`, or its ``max_visual_tokens``.
        *arguments: The other arguments of :class:`VisualBudget`, which has the rules and the errors.
        **options: The same by name.

    Example:
        .. code-block:: python

            agent = create_agent(model, [screenshot], middleware=[VisualBudgetMiddleware(2000)])
    """

    def __init__(self, budget: VisualBudget | float, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.budget = budget if isinstance(budget, VisualBudget) else VisualBudget(budget, *arguments, **options)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with pictures that fit."""
        fitted = self._fit(request)
        return _reported(handler(_fitting(request, fitted)), fitted.report)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Call the model with pictures that fit; they are opened in a thread."""
        fitted = await run_in_executor(None, self._fit, request)
        return _reported(await handler(_fitting(request, fitted)), fitted.report)

    def _fit(self, request: ModelRequest[Any]) -> Fitted:
        return self.budget.fit(request.messages, request.model, request.model_settings)


def _fitting(request: ModelRequest[Any], fitted: Fitted) -> ModelRequest[Any]:
    """Return the request with the messages that fit, to a model whose run is marked."""
    model, report = request.model, fitted.report
    marks = {"visual_tokens_before": report["before"], "visual_tokens_after": report["after"]}
    marked = model.model_copy(
        update={"tags": [*(model.tags or ()), TAG], "metadata": {**(model.metadata or {}), **marks}}
    )
    return request.override(messages=fitted.messages, model=marked)


def _reported(response: ModelResponse[Any], report: dict[str, Any]) -> ModelResponse[Any]:
    """Return the response with the report in the metadata of its answers."""
    result: Sequence[BaseMessage] = [
        message.model_copy(update={"response_metadata": message.response_metadata | {"visual_budget": report}})
        if isinstance(message, AIMessage)
        else message
        for message in response.result
    ]
    return ModelResponse(list(result), response.structured_response)
