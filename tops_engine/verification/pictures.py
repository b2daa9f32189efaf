"""The pictures and questions that `tops verify` asks about; they are part of the package."""

from functools import cache
from pathlib import Path

from PIL import Image

from tops_engine.conversation.messages import Message, user_message
from tops_engine.media.images import open_image
from tops_engine.mini import mini_path

FOLDER = Path(__file__).resolve().parent / "pictures"

#: The pictures by name: a photograph with objects on it, two scenes side by side, two above each other, a small one.
PICTURES = {
    "photo": mini_path().parent / "sample.jpg",
    "wide": FOLDER / "wide.jpg",
    "tall": FOLDER / "tall.jpg",
    "small": FOLDER / "small.jpg",
}

#: What is asked about each picture to measure fidelity.
QUESTIONS = (
    "Describe the picture.",
    "What number is written?",
    "Which colours do the shapes have? Answer in a sentence.",
)


@cache
def picture(name: str) -> Image.Image:
    """Return one of :data:`PICTURES` as RGB."""
    return open_image(PICTURES[name])


def conversations() -> dict[str, list[Message]]:
    """Return the eight conversations of the parity check, by what is special about them."""
    photo, wide, tall, small = (picture(name) for name in PICTURES)
    return {
        "no picture": [user_message("Name three colours.")],
        "one picture": [user_message("What number is written?", photo)],
        "a wide picture": [user_message("Describe the picture.", wide)],
        "a tall picture": [user_message("What words are written?", tall)],
        "a small picture": [user_message("How many objects are there?", small)],
        "two pictures": [user_message("What differs between the pictures?", photo, small)],
        "three pictures": [user_message("What do the pictures have in common?", small, wide, tall)],
        "pictures in two turns": [
            user_message("What word is written?", photo),
            {"role": "assistant", "content": "KITE"},
            user_message("And which words are in this picture?", small),
        ],
    }


def fidelity_conversations() -> list[list[Message]]:
    """Return a conversation for every question about every picture."""
    return [[user_message(question, picture(name))] for name in PICTURES for question in QUESTIONS]
