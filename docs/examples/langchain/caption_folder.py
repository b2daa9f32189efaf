"""Write captions for a folder of pictures, several at a time: ``batch`` is one run on the engine.

python docs/examples/langchain/caption_folder.py photos --model llava-hf/llava-1.5-7b-hf > captions.jsonl
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_tops import ChatTOPSLlava

from tops_engine.media.folders import list_pictures


def captions(folder: Path, model: ChatTOPSLlava, prompt: str, batch_size: int) -> Iterator[tuple[Path, str]]:
    """Yield each picture of a folder and its subfolders with its caption, or with the reason why it has none."""
    paths = [folder / name for name in list_pictures(folder)]
    questions = [
        [HumanMessage([{"type": "image", "url": str(path)}, {"type": "text", "text": prompt}])] for path in paths
    ]
    answers = model.batch(list(questions), {"max_concurrency": batch_size}, return_exceptions=True)
    for path, answer in zip(paths, answers, strict=True):
        yield path, f"ERROR: {answer}" if isinstance(answer, Exception) else answer.text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompt", default="Describe the picture.")
    parser.add_argument("--keep", type=float, default=0.222, help="fraction of the visual tokens to keep")
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args(arguments)

    model = ChatTOPSLlava(model=given.model, keep=given.keep)
    for path, caption in captions(given.folder, model, given.prompt, given.batch_size):
        print(
            json.dumps({"picture": path.relative_to(given.folder).as_posix(), "caption": caption}, ensure_ascii=False)
        )


if __name__ == "__main__":
    main()
