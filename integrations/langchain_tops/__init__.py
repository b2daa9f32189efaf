"""TOPS Engine as a LangChain chat model: ``from langchain_tops import ChatTOPSLlava``."""

from typing import TYPE_CHECKING, Any

from langchain_tops.chat_model import ChatTOPSLlava
from langchain_tops.content import image_block
from langchain_tops.traces import without_pictures
from langchain_tops.visual_budget import VisualBudget
from tops_engine.errors import MissingDependency

if TYPE_CHECKING:
    from langchain_tops.middleware import VisualBudgetMiddleware

__all__ = ["ChatTOPSLlava", "VisualBudget", "VisualBudgetMiddleware", "image_block", "without_pictures"]


def __getattr__(name: str) -> Any:
    # The chat model needs langchain-core only; agents and their middleware are in the package langchain.
    if name != "VisualBudgetMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from langchain_tops.middleware import VisualBudgetMiddleware
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "langchain":
            raise
        raise MissingDependency(
            "VisualBudgetMiddleware needs langchain: pip install 'langchain>=1.4'; VisualBudget works without it."
        ) from error
    return VisualBudgetMiddleware
