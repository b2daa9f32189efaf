"""Test TOPS Caption Batch on the embedded model, called as a graph calls it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tops_workflow.host import Interrupted
from torch import Tensor

import nodes
from nodes.models import TopsModel
from nodes.pictures import to_image, to_pictures
from tests.conftest import Picture
from tests.nodes.conftest import RecordingHost, node
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidInput, OutOfMemory
from tops_engine.settings import Generation, Pruning


def caption_batch(model: TopsModel, tokens: int = 12, size: int = 2, **inputs: Any) -> Any:
    listed = {name: value if isinstance(value, list) else [value] for name, value in inputs.items()}
    return node("TOPSCaptionBatch").caption([model], ["caption"], [size], [tokens], [0.0], [0], **listed)


def captions(model: TopsModel, tokens: int = 12, size: int = 2, **inputs: Any) -> Any:
    """Return the outputs but the preview."""
    return caption_batch(model, tokens, size, **inputs)["result"][:5]


def test_captions_of_a_mixed_list_are_those_of_single_questions(
    model: TopsModel, photo: Tensor, plain: Engine, watching: RecordingHost, picture: Picture
) -> None:
    others = to_image([picture(60, 40, seed) for seed in (1, 2)])
    texts, names, stats, report, _ = captions(model, images=[photo, others])
    prompt = "Describe this picture in one sentence."
    expected = [
        plain.chat([user_message(prompt, image)], generation=Generation(max_tokens=12)).text
        for batch in (photo, others)
        for image in to_pictures(batch)
    ]
    assert texts == [" ".join(text.split()) for text in expected]
    assert names == ["0", "1", "2"]
    assert len(stats.answers) == 3
    assert report.startswith("3 captioned")
    assert watching.steps[-1] == (36, 36)


def test_a_folder_is_captioned_and_an_interrupted_run_goes_on(
    model: TopsModel, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.input / "set"
    folder.mkdir()
    for number in range(5):
        picture(40, 40, number).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_bytes(b"not a picture")
    (folder / "0.txt").write_text("mine\n")
    watching.stop_at_text = True  # the first batch is done
    with pytest.raises(Interrupted):
        captions(model, folder="set", write_txt=True)
    written = {path.name for path in folder.glob("*.txt")}
    assert written == {"0.txt", "1.txt", "2.txt"}
    kept = (folder / "1.txt").stat().st_mtime_ns
    watching.stop_at_text = False
    texts, names, _, report, _ = captions(model, folder="set", write_txt=True)
    assert names == [f"{number}.png" for number in range(5)]
    assert texts[0] == "mine"
    assert [(folder / f"{number}.txt").read_text().strip() for number in range(5)] == texts
    assert (folder / "1.txt").stat().st_mtime_ns == kept
    assert [line.split(":")[0] for line in watching.texts[-1].splitlines()][:2] == ["4.png", "3.png"]
    assert "1 failed" in report
    assert "bad.jpg" in report


def test_a_folder_is_walked_as_the_command_line_does_and_a_bad_text_fails_alone(
    model: TopsModel, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.input / "set"
    (folder / "sub" / ".cache").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "sub/a.jfif", "c.png", ".d.png", "sub/.cache/e.png")):
        picture(40, 40, seed).save(folder / name, "PNG")
    (folder / "clip.mp4").write_bytes(b"")
    (folder / "c.txt").write_bytes("café".encode("cp1252"))
    texts, names, _, report, _ = captions(model, folder="set", write_txt=True)
    assert names == ["b.png", "sub/a.jfif"]
    assert (folder / "sub" / "a.txt").read_text().strip() == texts[1]
    first, failed = report.splitlines()
    assert first == "2 captioned, 0 had a .txt file already, 1 failed. Left out: 2 hidden, 1 .mp4, 1 .txt."
    assert failed.endswith("c.txt is not UTF-8 text; convert it to UTF-8, or delete it.")
    changed = nodes.NODE_CLASS_MAPPINGS["TOPSCaptionBatch"].IS_CHANGED
    assert changed(folder=["set"], existing_txt=["keep"])
    assert captions(model, folder="set", write_txt=True, existing_txt="overwrite")[3].startswith("3 captioned")


def test_pictures_that_share_a_text_file_are_named_and_nothing_is_asked(
    model: TopsModel, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.input / "set"
    folder.mkdir()
    for seed, name in enumerate(("x.png", "x.jpg")):
        picture(40, 40, seed).save(folder / name)
    with pytest.raises(InvalidInput, match=r"x\.jpg and x\.png in .*Rename or move"):
        captions(model, folder="set", write_txt=True)
    assert captions(model, folder="set")[1] == ["x.jpg", "x.png"]
    (folder / "x.txt").write_text("whose?")
    with pytest.raises(InvalidInput, match=r"x\.jpg and x\.png in .*Rename or move"):
        captions(model, folder="set")
    assert captions(model, folder="set", existing_txt="overwrite")[1] == ["x.jpg", "x.png"]
    assert not watching.texts[-1].count("whose?")


def test_a_batch_that_runs_out_of_memory_is_asked_one_by_one(
    model: TopsModel, watching: RecordingHost, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [to_image([picture(40, 40, seed)]) for seed in range(5)]
    expected = captions(model, images=images, size=5)[0]
    batch, sizes = model.engine.batch, []

    def small(conversations: Any, *options: Any) -> Any:
        sizes.append(len(conversations))
        if len(conversations) > 1:
            raise OutOfMemory("The device ran out of memory.")
        return batch(conversations, *options)

    monkeypatch.setattr(model.engine, "batch", small)
    texts, _, _, report, _ = captions(model, images=images, size=3)
    assert texts == expected
    assert sizes == [3, 1, 1, 1, 2, 1, 1]
    assert report == "5 captioned, 0 had a .txt file already, 0 failed."
    assert watching.steps[-1] == (60, 60)


def test_what_no_picture_is_to_blame_for_fails_the_node(model: TopsModel, photo: Tensor) -> None:
    with pytest.raises(InvalidInput, match="less than one of"):
        captions(model, images=[photo, photo], pruning=Pruning(method="random", keep=0.001))


def test_a_folder_outside_is_refused_before_the_run(watching: RecordingHost) -> None:
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSCaptionBatch"].VALIDATE_INPUTS
    for folder in ("../..", "/etc", "missing"):
        assert isinstance(validate(folder=folder), str)
    assert validate(folder="") is True


def test_the_folders_fingerprint_follows_its_files(watching: RecordingHost, picture: Picture) -> None:
    folder = watching.folders.input / "set"
    folder.mkdir()
    picture().save(folder / "a.png")
    changed = nodes.NODE_CLASS_MAPPINGS["TOPSCaptionBatch"].IS_CHANGED
    before = changed(folder=["set"], existing_txt=["keep"])
    assert before == changed(folder=["set"], existing_txt=["keep"])
    picture(seed=1).save(folder / "b.png")
    assert before != changed(folder=["set"], existing_txt=["keep"])


def test_training_captions_have_their_trigger_word_and_a_preview(
    model: TopsModel, watching: RecordingHost, picture: Picture
) -> None:
    folder = watching.folders.output / "set"
    folder.mkdir()
    for number in range(9):
        picture(40, 60, number).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("mine\n")
    inputs: dict[str, Any] = {"folder": "set", "write_txt": True, "trigger": "sks", "suffix": ", photo"}
    planned = caption_batch(model, dry_run=True, **inputs)
    first, becomes, *names = planned["result"][3].splitlines()
    assert first == "Would caption 8 pictures; 1 have a .txt file that is kept. Left out: 1 .txt."
    assert becomes == "Each caption becomes: sks, ..., photo"
    assert names == [f"{number}.png" for number in range(1, 9)]
    assert planned["ui"]["text"] == [planned["result"][3]]
    assert [path.name for path in folder.glob("*.txt")] == ["0.txt"]
    assert not watching.texts

    done = caption_batch(model, **inputs)
    texts, preview = done["result"][0], done["result"][5]
    assert texts[0] == "mine"
    assert all(text.startswith("sks, ") and text.endswith(", photo") for text in texts[1:])
    assert [(folder / f"{number}.txt").read_text().strip() for number in range(9)] == texts
    assert preview.shape[0] == len(done["ui"]["images"]) == 2
    for shown in done["ui"]["images"]:
        assert Image.open(watching.folders.temp / shown["filename"]).size == (preview.shape[2], preview.shape[1])


def test_a_folder_elsewhere_is_captioned_where_the_owner_allows_it(
    model: TopsModel, watching: RecordingHost, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere" / "set"
    folder.mkdir(parents=True)
    picture(40, 40).save(folder / "a.png")
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSCaptionBatch"].VALIDATE_INPUTS
    assert "TOPS_FOLDERS" in validate(folder=str(folder))
    monkeypatch.setenv("TOPS_FOLDERS", f"relative:{folder.parent}")
    assert validate(folder=str(folder)) is True
    assert captions(model, folder=str(folder), write_txt=True)[1] == ["a.png"]
    assert (folder / "a.txt").is_file()
    for other in (str(tmp_path), f"{folder}/../..", "set"):
        assert isinstance(validate(folder=other), str)
    assert validate(folder=str(watching.folders.input)) is True


def test_nothing_to_caption_is_said(model: TopsModel, watching: RecordingHost) -> None:
    with pytest.raises(InvalidInput, match="nothing to caption"):
        captions(model)
    several = {"images": [torch.rand(1, 8, 8, 3)], "custom_prompt": ["One?", "Two?"]}
    with pytest.raises(InvalidInput, match="custom_prompt got 2 texts"):
        node("TOPSCaptionBatch").caption([model], ["custom"], [1], [8], [0.0], [0], **several)
