"""Encode the pictures of a folder of any size into files that vLLM takes; a stopped run continues."""

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tops_engine.encoding.encoder import PictureEncoder
from tops_engine.errors import InvalidInput, OutOfMemory, TopsError, shorten
from tops_engine.journal import Journal
from tops_engine.media.folders import counts_of_run, left_out_sentence, list_pictures
from tops_engine.progress import Progress, no_progress
from tops_engine.remote.encoding import EncodedPicture

FORMAT = "tops encoded pictures 1"

#: The list of the pictures and their files, beside the files.
INDEX = "encoded.jsonl"

#: So many failures before the first picture is encoded are not the fault of the pictures.
HOPELESS = 20

#: Is told the name of a picture and what failed.
OnFailure = Callable[[str, TopsError], None]


@dataclass
class Encoding:
    """The summary of a run.

    Attributes
    ----------
    before : pictures that were encoded by an earlier run.
    left_out : files and folders that are no pictures, by kind.
    encoded, failed : pictures of this run.
    num_bytes : size of the files of this run.
    seconds : duration of this run.
    """

    before: int
    left_out: Counter[str] = field(default_factory=Counter)
    encoded: int = 0
    failed: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    def sentence(self) -> str:
        """Return the counts as a sentence for people."""
        size = f"{self.num_bytes / 1e6:.1f} MB"
        parts = counts_of_run("encoded", self.encoded, self.failed, self.before, self.seconds, size)
        return f"{', '.join(parts)}. {left_out_sentence(self.left_out)}".rstrip()


def encode_folder(
    encoder: PictureEncoder,
    folder: Path,
    output: Path,
    batch_size: int = 8,
    progress: Progress = no_progress,
    on_failure: OnFailure = lambda name, error: None,
) -> Encoding:
    """Encode every picture in a folder and its subfolders, with the encoder's own pruning.

    The kept tokens of ``cats/7.jpg`` go to ``<output>/cats/7.jpg.pt``: what ``torch.save`` writes for a tensor
    [kept, hidden size], which is what vLLM takes in base64 as ``image_embeds``. ``<output>/encoded.jsonl`` says in its
    first line what ran, and in the others what each file holds.

    Parameters
    ----------
    output : the folder of the results; it is made if there is none.
    batch_size : pictures encoded together.
    progress : gets the number of pictures that are done and of all.
    on_failure : is told about each picture that fails; the next run tries it again.

    Raises
    ------
    InvalidInput
        If there are no pictures, the folder belongs to another run or cannot be written, or nothing works at all.
    TopsError
        If the tower cannot be loaded.
    """
    left_out: Counter[str] = Counter()
    names = list_pictures(folder, left_out)
    runs = encoder.runs(None)
    _make(output)
    settings = {
        "format": FORMAT,
        "folder": folder.resolve().name,
        "model": encoder.spec.model,
        "pruning": runs.resolved(),
        "hidden_size": encoder.hidden_size,
        "dtype": encoder.dtype,
    }
    journal = Journal(output / INDEX, settings)
    done = {line["picture"] for line in journal.records() if "file" in line and "picture" in line}
    done = {name for name in done.intersection(names) if (output / f"{name}.pt").is_file()}
    missing = [name for name in names if name not in done]
    run = Encoding(len(done), left_out)
    began = time.monotonic()
    progress(run.before, len(names))
    for begin in range(0, len(missing), batch_size):
        for name, result in _encoded(encoder, folder, missing[begin : begin + batch_size]):
            journal.append([_written(name, result, output, run)])
            if isinstance(result, TopsError):
                on_failure(name, result)
                _check_hope(run, result)
        run.seconds = time.monotonic() - began
        progress(run.before + run.encoded + run.failed, len(names))
    journal.sort(lambda line: str(line.get("picture")).replace("/", "\0"))
    return run


def _encoded(
    encoder: PictureEncoder, folder: Path, names: Sequence[str]
) -> list[tuple[str, EncodedPicture | TopsError]]:
    """Encode pictures together; if that fails, each alone."""
    try:
        return list(zip(names, encoder.encode_batch([folder / name for name in names]), strict=True))
    except (InvalidInput, OutOfMemory) as error:
        if len(names) == 1:
            return [(names[0], error)]
        return [result for name in names for result in _encoded(encoder, folder, [name])]


def _written(name: str, result: EncodedPicture | TopsError, output: Path, run: Encoding) -> dict[str, Any]:
    """Write the file of a picture, count it, and return its line of the index."""
    if isinstance(result, TopsError):
        run.failed += 1
        return {"picture": name, "error": str(result)}
    data = base64.b64decode(result.image_embeds)
    path = output / f"{name}.pt"
    _make(path.parent)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise InvalidInput(f"The file {shorten(path)} cannot be written: {error.strerror}.") from error
    run.encoded += 1
    run.num_bytes += len(data)
    return {"picture": name, "file": f"{name}.pt", "kept": result.kept, "unpruned": result.unpruned, "bytes": len(data)}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"The folder {shorten(folder)} cannot be made: {error.strerror}.") from error


def _check_hope(run: Encoding, error: TopsError) -> None:
    if run.failed >= HOPELESS and not run.encoded:
        raise InvalidInput(f"None of the first {run.failed} pictures could be encoded; the last: {error}")
