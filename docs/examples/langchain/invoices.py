"""Read invoices from pictures into checked objects, one JSON line each.

python docs/examples/langchain/invoices.py scans --model Qwen/Qwen2.5-VL-7B-Instruct --keep 0.5

A grammar holds the model to the schema, so every answer is an ``Invoice``; ``check`` then compares the sum of the items
with the total, and an invoice that does not add up is read once more with all visual tokens. The values need a model
that reads documents, such as Qwen2.5-VL: mini runs the whole chain, but knows only scenes of shapes and fills in
nonsense.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from langchain_tops import ChatTOPSLlava, image_block
from pydantic import BaseModel, Field

from tops_engine.errors import TopsError
from tops_engine.media.folders import list_pictures


class Item(BaseModel):
    """One line of an invoice."""

    text: str = Field(max_length=40)
    amount: float = Field(ge=0, le=1_000_000)


class Invoice(BaseModel):
    """An invoice."""

    number: str = Field(max_length=20)
    seller: str = Field(max_length=40)
    items: list[Item] = Field(max_length=6)
    total: float = Field(ge=0, le=1_000_000)


def check(invoice: Invoice) -> bool:
    """Return whether the items add up to the total."""
    return abs(sum(item.amount for item in invoice.items) - invoice.total) < 0.01


def reader(model: ChatTOPSLlava, **options: Any) -> Runnable[Any, Any]:
    """Return a model that reads a message with a picture into an invoice."""
    return model.with_structured_output(Invoice, max_tokens=400, **options)


def read_invoice(path: Path, model: ChatTOPSLlava) -> tuple[Invoice, bool]:
    """Return the invoice of a picture, and whether it adds up."""
    message = HumanMessage([image_block(path), {"type": "text", "text": "Read this invoice."}])
    invoice: Invoice = reader(model).invoke([message])
    if not check(invoice):
        invoice = reader(model, keep=1.0).invoke([message])
    return invoice, check(invoice)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="Qwen/Qwen2.5-VL-7B-Instruct")
    parser.add_argument("--keep", type=float, default=0.5, help="fraction of the visual tokens of the first look")
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    for name in list_pictures(given.folder):
        try:
            invoice, adds_up = read_invoice(given.folder / name, model)
        except TopsError as error:
            print(json.dumps({"picture": name, "error": str(error)}))
            continue
        print(json.dumps({"picture": name, "adds_up": adds_up, **invoice.model_dump()}))


if __name__ == "__main__":
    main()
