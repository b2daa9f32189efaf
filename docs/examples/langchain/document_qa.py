"""Answer questions about a document whose pages are pictures: find the page, then read it.

python docs/examples/langchain/document_qa.py pages "Which word is written beside the cyan circle?"
python docs/examples/langchain/document_qa.py pages "What is the total?" --model Qwen/Qwen2.5-VL-7B-Instruct

The model describes each page once, in one batch and with few visual tokens; the descriptions are the index. A question
finds the page whose description shares most of its rarer words, and is asked about that page with more tokens. mini
describes its own scenes of shapes, words and digits; real pages need a model that reads documents, such as Qwen2.5-VL.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_tops import ChatTOPSLlava

from tops_engine.media.folders import list_pictures

PAGE = {"type": "image", "url": "{page}"}


class PageRetriever(BaseRetriever):
    """Finds pages by the words of their descriptions; a word counts more the fewer pages have it."""

    pages: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = [set(_words(page.page_content)) for page in self.pages]
        frequency = Counter(word for page in words for word in page)
        asked = set(_words(query))

        def score(page: set[str]) -> float:
            return sum(math.log(1 + len(words) / frequency[word]) for word in asked & page)

        ranked = sorted(zip(self.pages, words, strict=True), key=lambda pair: -score(pair[1]))
        return [page for page, _ in ranked[:1]]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def read_pages(folder: Path, model: ChatTOPSLlava, keep: float) -> PageRetriever:
    """Describe all pages of a folder with a share of their visual tokens and return their retriever."""
    paths = [str(folder / name) for name in list_pictures(folder)]
    prompt = ChatPromptTemplate.from_messages([("user", [PAGE, {"type": "text", "text": "Describe this picture."}])])
    answers = (prompt | model.bind(keep=keep)).batch([{"page": path} for path in paths])
    pages = zip(answers, paths, strict=True)
    return PageRetriever(pages=[Document(answer.text, metadata={"page": path}) for answer, path in pages])


def document_chain(retriever: PageRetriever, model: ChatTOPSLlava) -> Runnable[dict[str, Any], dict[str, Any]]:
    """Return a chain from ``{"question": text}`` to the page and the answer."""
    question = [PAGE, {"type": "text", "text": "{question}"}]
    answer = ChatPromptTemplate.from_messages([("user", question)]) | model

    def find(asked: dict[str, Any]) -> str:
        return str(retriever.invoke(asked["question"])[0].metadata["page"])

    return RunnablePassthrough.assign(page=find) | RunnablePassthrough.assign(answer=answer)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pictures of the pages")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--keep-index", type=float, default=0.222, help="visual tokens for the index")
    parser.add_argument("--keep", type=float, default=1.0, help="visual tokens for the answer")
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    chain = document_chain(read_pages(given.folder, model, given.keep_index), model)
    for question in given.questions:
        found = chain.invoke({"question": question})
        print(f"{Path(found['page']).name}: {found['answer'].text}")


if __name__ == "__main__":
    main()
