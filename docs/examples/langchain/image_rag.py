"""Find the picture of a folder that shows something, then ask about it.

python docs/examples/langchain/image_rag.py photos "red star" "What number is written?"

The vectors are the model's own: every patch of every picture, and the text, in the space of the CLIP model that the
vision tower comes from. mini brings one; for LLaVA name it: ``--clip openai/clip-vit-large-patch14-336``. CLIP's
patches resemble a text least where they show what it names, so the sign of the text's vector is turned. One vector a
patch finds small objects that a mean over the picture would hide.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tops import ChatTOPSLlava
from PIL import Image

from tops_engine import Engine, ModelSpec, shared_engine, user_message
from tops_engine.conversation.messages import read_conversation
from tops_engine.media.folders import list_pictures
from tops_engine.media.images import open_image
from tops_engine.methods import ClipEmbeddings


class PatchEmbeddings(Embeddings):
    """Embed patches, named ``path#number``, and texts."""

    def __init__(self, engine: Engine, clip: str | None = None) -> None:
        self.engine = engine
        self.clip = clip
        self.patches = functools.cache(self._patches)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of patches."""
        names = [text.rpartition("#") for text in texts]
        return [self.patches(path)[int(number)] for path, _, number in names]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector that is close to the patches that show what a text names."""
        vector: list[float] = (-self._embed(Image.new("RGB", (64, 64)), text).question).tolist()
        return vector

    def _patches(self, path: str) -> list[list[float]]:
        vectors: list[list[float]] = self._embed(open_image(path), "What is shown?").patches.tolist()
        return vectors

    @torch.inference_mode()
    def _embed(self, picture: Image.Image, text: str) -> ClipEmbeddings:
        family = self.engine.family
        prompt = family.prepare(read_conversation([user_message(text, picture)]))
        return family.encode([prompt])[0][0].clip_embeddings(self.clip)


def picture_store(pictures: Sequence[Path], embeddings: PatchEmbeddings) -> InMemoryVectorStore:
    """Return a store of all patches of the pictures."""
    store = InMemoryVectorStore(embeddings)
    for path in map(str, pictures):
        numbers = range(len(embeddings.patches(path)))
        store.add_documents([Document(f"{path}#{number}", metadata={"picture": path}) for number in numbers])
    return store


def rag_chain(store: InMemoryVectorStore, model: ChatTOPSLlava) -> Runnable[dict[str, str], dict[str, str]]:
    """Return a chain from ``{"find": what the picture shows, "question": text}`` to the picture and the answer."""

    def find(asked: dict[str, str]) -> str:
        (patch,) = store.similarity_search(f"Where is the {asked['find']}?", k=1)
        return str(patch.metadata["picture"])

    question = [{"type": "image", "url": "{picture}"}, {"type": "text", "text": "{question}"}]
    answer = ChatPromptTemplate.from_messages([("user", question)]) | model | StrOutputParser()
    return RunnablePassthrough.assign(picture=find) | RunnablePassthrough.assign(answer=answer)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("find", help="what the picture shows, such as 'red star'")
    parser.add_argument("question")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clip", help="CLIP model of the model's vision tower, if it brings none")
    parser.add_argument("--keep", type=float, default=0.222, help="fraction of the visual tokens to keep")
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    pictures = [given.folder / name for name in list_pictures(given.folder)]
    embeddings = PatchEmbeddings(shared_engine(ModelSpec(model=given.model)), given.clip)
    found = rag_chain(picture_store(pictures, embeddings), model).invoke(
        {"find": given.find, "question": given.question}
    )
    print(f"{Path(found['picture']).name}: {found['answer']}")


if __name__ == "__main__":
    main()
