"""Answer questions about a picture with a chain of prompt, model and parser.

python docs/examples/langchain/vqa_chain.py photo.jpg "What number is written?" "What colour is the circle?"
python docs/examples/langchain/vqa_chain.py photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf --keep 0.111
python docs/examples/langchain/vqa_chain.py photo.jpg "What is this?" --server http://host:8000/v1
"""

import argparse
from collections.abc import Sequence

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_tops import ChatTOPSLlava


def vqa_chain(model: ChatTOPSLlava) -> Runnable[dict[str, str], str]:
    """Return a chain that answers ``{"picture": path or URL, "question": text}``."""
    question = [{"type": "image", "url": "{picture}"}, {"type": "text", "text": "{question}"}]
    return ChatPromptTemplate.from_messages([("user", question)]) | model | StrOutputParser()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--keep", type=float, default=0.222, help="fraction of the visual tokens to keep")
    parser.add_argument("--server", help="address of a server that runs the model and prunes as it was started")
    given = parser.parse_args(arguments)

    here = {"model": given.model, "keep": given.keep}
    chain = vqa_chain(ChatTOPSLlava(**({"base_url": given.server} if given.server else here)))
    for question in given.questions:
        print(f"{question} ", end="")
        for piece in chain.stream({"picture": given.picture, "question": question}):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
