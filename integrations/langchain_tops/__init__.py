"""TOPS Engine as a LangChain chat model: ``from langchain_tops import ChatTOPSLlava``."""

from langchain_tops.chat_model import ChatTOPSLlava
from langchain_tops.content import image_block

__all__ = ["ChatTOPSLlava", "image_block"]
