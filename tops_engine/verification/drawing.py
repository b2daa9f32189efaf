"""The picture of a verification: which tokens each budget keeps of a packaged picture."""

import io

from tops_engine.comparison.maps import draw_grid
from tops_engine.comparison.one_picture import compare_prunings
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.settings import Generation
from tops_engine.settings.labels import read_prunings
from tops_engine.verification.pictures import picture

QUESTION = "What number is written?"


def kept_tokens_png(engine: Engine) -> bytes:
    """Draw the tokens that TOPS and its first stage keep of the photograph at two budgets, as a PNG file."""
    prunings = read_prunings("tops,tops:stages=first", "0.222,0.111")
    messages = [user_message(QUESTION, picture("photo"))]
    rows = compare_prunings(engine, messages, prunings, Generation(max_tokens=16), repeats=1)
    content = io.BytesIO()
    draw_grid(rows, f"{QUESTION}  ({engine.family.model.config.model_type})", engine.family.decoder.num_layers).save(
        content, "PNG", optimize=True
    )
    return content.getvalue()
