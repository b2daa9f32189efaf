"""Test the nodes on the embedded model, called as a graph calls them."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageSequence
from tops_workflow.host import Interrupted, checked_prompt
from tops_workflow.samples import PHOTOGRAPH, samples_folder
from torch import Tensor

import nodes
from nodes.models import TopsModel, living_handles
from nodes.pictures import to_image, to_pictures
from nodes.sockets import History
from tests.conftest import Picture
from tests.nodes.conftest import RecordingHost, node
from tests.support.checkpoints_qwen import save_qwen3_vl
from tests.support.checkpoints_thinking import save_thinking
from tests.support.checkpoints_video import save_onevision
from tests.support.usage import token_counts
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, InvalidInput, ModelNotFound, OutOfMemory, TopsError
from tops_engine.settings import Generation, ModelSpec, Pruning

QUESTION = "What number is written?"


@pytest.fixture(scope="module")
def model() -> TopsModel:
    handle: TopsModel = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa")[0]
    return handle


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return to_image([Image.open(samples_folder() / "tops_photo.jpg")])


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine.load(ModelSpec(model="mini", device="cpu"))


def ask(model: TopsModel, prompt: str | None = QUESTION, tokens: int = 32, **inputs: Any) -> Any:
    return node("TOPSAsk").ask(model, prompt, tokens, 0.0, 0, **inputs)


def test_ask_gives_the_engines_answer_and_everything_around_it(
    model: TopsModel, photo: Tensor, plain: Engine, watching: RecordingHost
) -> None:
    done = ask(model, image=photo, pruning=Pruning(keep=0.4))
    answer, token_map, history, stats, stats_text, reasoning = done["result"]
    expected = plain.chat([user_message(QUESTION, to_pictures(photo)[0])], Pruning(keep=0.4), Generation(max_tokens=32))
    assert answer == expected.text == "5"
    assert reasoning == ""
    assert done["ui"] == {"text": ["5"], "notes": []}
    assert token_map.shape[-1] == 3
    assert token_map.dtype == torch.float32
    assert 0 <= token_map.min() < token_map.max() <= 1
    assert token_counts(stats.answers[0]) == token_counts(expected)
    assert f"{expected.usage.visual_tokens}" in stats_text
    assert str(history) == f"user: [picture] {QUESTION}\n\nassistant: 5"
    assert watching.texts[-1] == "5"
    assert watching.steps[-1] == (32, 32)


def test_the_node_says_what_was_not_chosen_and_what_mini_does_not_know(
    model: TopsModel, photo: Tensor, picture: Picture
) -> None:
    (default,) = ask(model, tokens=2, image=photo)["ui"]["notes"]
    assert default == "No TOPS Pruning is connected: tops keeps 22.2 % of the visual tokens."
    assert ask(model, tokens=2, image=photo, pruning=Pruning())["ui"]["notes"] == []
    # ComfyUI's own reader of JPEG files gives slightly different pixels.
    other_pixels = (photo + 0.02 * torch.randn_like(photo)).clamp(0, 1)
    assert ask(model, tokens=2, image=other_pixels, pruning=Pruning())["ui"]["notes"] == []
    for other in (picture(90, 60), Image.open(samples_folder() / PHOTOGRAPH)):
        (warning,) = ask(model, tokens=2, image=to_image([other]), pruning=Pruning())["ui"]["notes"]
        assert warning.startswith("mini knows only the scenes that it was trained on")
    clip = Image.open(samples_folder() / "tops_clip.webp")
    frames = to_image([frame.convert("RGB") for frame in ImageSequence.Iterator(clip)])
    done = node("TOPSVideoAsk").ask(model, frames, "What?", 3, 2.5, 2, 0.0, 0, pruning=Pruning())
    assert done["ui"]["notes"] == []
    assert ask(model, "Hello", tokens=2)["ui"]["notes"] == []


def test_a_budget_that_the_model_cannot_meet_is_refused_before_the_run() -> None:
    """Check with the prompt, because what a method can reach depends on the layers of the model."""
    values = {"method": "fastv", "keep": 0.222, "options": "", "then": "none", "cascade": ""}
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSPruning"].VALIDATE_INPUTS
    prompt = {
        "1": {"class_type": "TOPSLoadModel", "inputs": {"model": "mini"}},
        "2": {"class_type": "TOPSPruning", "inputs": values},
        "3": {"class_type": "TOPSAsk", "inputs": {"model": ["1", 0], "pruning": ["2", 0], "prompt": "What?"}},
    }
    assert validate(**values) is True
    token = checked_prompt.set(prompt)
    try:
        with pytest.raises(InvalidInput, match=r"keep=0.222 cannot be met by pruning at layer 2 of 8.*at least 0.25"):
            validate(**values)
        assert validate(**values | {"keep": 0.3}) is True
        prompt["1"]["inputs"] = {"model": "mini", "hub_id": "owner/not-here"}
        assert validate(**values) is True
    finally:
        checked_prompt.reset(token)


def test_a_conversation_goes_on_with_its_pictures(model: TopsModel, photo: Tensor, plain: Engine) -> None:
    first = ask(model, image=photo, system="Be brief.")["result"]
    second = ask(model, "What colour is the star?", history=first[2])["result"]
    messages = [
        {"role": "system", "content": "Be brief."},
        user_message(QUESTION, to_pictures(photo)[0]),
        {"role": "assistant", "content": first[0]},
        user_message("What colour is the star?"),
    ]
    assert second[0] == plain.chat(messages, generation=Generation(max_tokens=32)).text
    assert len(second[2].messages) == 5
    with pytest.raises(InvalidInput, match="first TOPS Ask"):
        ask(model, history=first[2], system="Be long.")


def test_pictures_are_scaled_to_the_bounds_of_the_loader(photo: Tensor) -> None:
    (handle,) = node("TOPSLoadModel").load("mini", "auto", "cpu", "none", "sdpa", "", "", 0, 400)
    assert handle.engine.spec.max_pixels == 400
    assert handle.engine.spec.min_pixels is None
    stats = ask(handle, image=photo)["result"][3]
    width, height = stats.answers[0].token_map.visuals[0].size
    assert 360 <= width * height <= 400
    image, mask, _ = node("TOPSTokenMap").draw(stats, "dim", -1, 0)
    assert image.shape == photo.shape
    assert mask.shape == photo.shape[:3], "other nodes lay the mask on the picture that they have"


def test_several_pictures_are_one_question(model: TopsModel, photo: Tensor) -> None:
    done = ask(model, image=torch.cat([photo, photo]), image_2=torch.rand(1, 40, 90, 4))
    assert len(done["result"][3].answers[0].usage.stages[0].visual_tokens) == 3


def test_single_pictures_have_their_own_budgets(model: TopsModel, photo: Tensor) -> None:
    done = ask(model, image=torch.cat([photo, photo]), image_2=photo, pruning=Pruning(keep=0.5), keeps="1.0, , 36")
    pictures = done["result"][3].answers[0].usage.pictures
    assert [one.keep for one in pictures] == [1.0, None, 36]
    assert [one.layer_average for one in pictures] == pytest.approx([144, 72, 36], abs=0.5)
    with pytest.raises(InvalidInput, match="keeps has 2 budgets for 1 pictures"):
        ask(model, image=photo, keeps="1.0, 0.5")
    with pytest.raises(InvalidInput, match=r"^keep='1.5' of a picture or video is not allowed"):
        ask(model, image=photo, keeps="1.5")


def test_no_picture_is_a_question_too(model: TopsModel) -> None:
    answer, token_map, *_ = ask(model, "Hello")["result"]
    assert isinstance(answer, str)
    assert token_map.ndim == 4


@pytest.mark.parametrize(
    "image", [torch.rand(0, 8, 8, 3), torch.rand(8, 8, 3), torch.rand(1, 8, 8, 2), torch.rand(1, 0, 8, 3), "red.png"]
)
def test_what_is_no_picture_is_refused_in_a_sentence(model: TopsModel, image: Any) -> None:
    with pytest.raises(InvalidImage, match="'image'"):
        ask(model, image=image)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 8, 8, 1), (1, 3, 700, 4)])
def test_any_size_and_number_of_channels_is_taken(model: TopsModel, shape: tuple[int, ...]) -> None:
    assert ask(model, tokens=2, image=torch.full(shape, float("nan")))["result"][0] is not None


def test_transparency_is_shown_on_white() -> None:
    half = torch.zeros(1, 4, 4, 4)
    (picture,) = to_pictures(half)
    assert picture.mode == "RGBA"


def test_an_interruption_stops_while_the_prompt_is_read(
    model: TopsModel, photo: Tensor, watching: RecordingHost
) -> None:
    watching.stop.set()
    with pytest.raises(Interrupted):
        ask(model, image=photo)
    assert watching.steps == []
    assert watching.texts[-1] == "Reading the prompt …"
    watching.stop.clear()
    assert ask(model, image=photo)["result"][0] == "5"
    assert not any(module._forward_pre_hooks for module in model.engine.family.model.modules())


def test_an_interruption_stops_within_one_token(model: TopsModel, photo: Tensor, watching: RecordingHost) -> None:
    watching.stop_after = 2
    with pytest.raises(Interrupted):
        ask(model, "Describe the picture. Answer in a sentence.", image=photo)
    assert len(watching.steps) == 2
    watching.stop_after = None
    assert ask(model, image=photo)["result"][0] == "5"


def test_wrong_things_in_a_socket_are_named(model: TopsModel) -> None:
    with pytest.raises(InvalidInput, match="TOPS Load Model"):
        ask({"model": "mini"})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="TOPS Pruning"):
        ask(model, pruning="tops")
    with pytest.raises(InvalidInput, match="history"):
        ask(model, history=["hello"])


def test_equal_settings_share_one_model_and_the_last_user_frees_it() -> None:
    load = node("TOPSLoadModel").load
    one, two = load("mini", "float32", "cpu", "none", "eager")[0], load("mini", "float32", "cpu", "none", "eager")[0]
    assert one is two
    engine = one.engine
    ask(one, "Hello", 1)
    assert engine.is_loaded
    del one, two
    gc.collect()
    assert not engine.is_loaded


def test_models_come_from_the_model_folders_only(watching: RecordingHost, llava_folder: Path) -> None:
    folder = watching.folders.models["TOPS"][0]
    (folder / "small").symlink_to(llava_folder)
    loader = nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"]
    assert "TOPS/small" in loader.INPUT_TYPES()["required"]["model"][0]
    assert loader.VALIDATE_INPUTS(model="mini") is True
    assert loader.VALIDATE_INPUTS(model=None, hub_id="owner/name") is True
    assert "models/LLM" in str(loader.VALIDATE_INPUTS(model="LLM/not-there"))
    for outside in ("/etc", "../../etc", "~/secret", "TOPS/../../x", "C:\\models"):
        assert loader.VALIDATE_INPUTS(model="mini", hub_id=outside) is not True
    with pytest.raises(ModelNotFound, match="not-there"):
        loader().load("TOPS/not-there", "auto", "cpu", "none", "sdpa")


def test_a_folder_inside_a_checkpoint_or_a_pipeline_is_no_checkpoint(watching: RecordingHost) -> None:
    folder = watching.folders.models["LLM"][0]
    for name in ("whole/config.json", "whole/clip/config.json", "pipe/model_index.json", "pipe/unet/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "owner" / "name").mkdir(parents=True)
    (folder / "owner" / "name" / "config.json").write_text("{}")
    models = nodes.NODE_CLASS_MAPPINGS["TOPSLoadModel"].INPUT_TYPES()["required"]["model"][0]
    assert [name for name in models if name.startswith("LLM/")] == ["LLM/owner/name", "LLM/whole"]


def test_pruning_widgets_become_settings() -> None:
    settings = node("TOPSPruning").settings
    defaults = {"schedule": "", "alpha": 0.5, "lambda": 0.5, "raters": "dynamic", "positions": "default"}
    assert settings(method="tops", keep=0.222, **defaults)[0] == Pruning()
    assert settings(method="tops", keep=64.0, **defaults | {"lambda": 2.0})[0] == Pruning(keep=64, lambda_=2.0)
    seeded = settings(method="random", keep=1, options="selection_seed=7", **defaults)[0]
    assert seeded.resolved() == Pruning(method="random", keep=1.0, selection_seed=7).resolved()
    composed = settings(method="divprune", keep=0.5, options="layer=3\nmerge=true", then="fastv", **defaults)[0]
    assert composed.resolved() == Pruning(method="divprune+fastv", keep=0.5, layer=3, merge=True).resolved()
    cascade = settings(method="tops", keep=0.111, cascade="0.333+1.0", confident=0.8, **defaults)[0]
    assert cascade == Pruning(keep=(0.111, 0.333, 1.0), confident=0.8)
    limited = settings(method="tops", keep=0.222, options="flops=0.3", **defaults)[0]
    assert limited.resolved() == Pruning(flops=0.3).resolved()
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSPruning"].VALIDATE_INPUTS
    assert validate("tops", 0.5) is True
    assert "have to rise" in str(validate("tops", 0.5, cascade="0.1"))
    assert "give several" in str(validate("tops", 0.5, confident=0.9))
    assert "keep and flops both set the budget" in str(validate("tops", 0.5, "flops=0.3"))
    assert validate("divprune", 0.5, "", "fastv") is True
    assert "does not prune before the language model" in str(validate("dart", 0.5, "", "fastv"))
    for keep, options in ((1.5, ""), (0.5, "gamma=1"), (0.5, "nonsense"), (0.5, "recipe=/etc/passwd"), (0.0, "")):
        assert isinstance(validate("tops", keep, options), str)


def test_a_recipe_is_saved_and_loaded_and_stays_in_its_folders(watching: RecordingHost) -> None:
    recipe = node("TOPSRecipe").recipe
    given = Pruning(keep=64, raters="last")
    saved = recipe("mine", given)["result"]
    assert (watching.folders.output / "tops_recipes" / "mine.json").is_file()
    loaded = recipe("mine")["result"]
    assert saved[0] == loaded[0] == given
    assert json.loads(loaded[1])["raters"] == "last"
    (watching.folders.input / "broken.json").write_text("{")
    (watching.folders.input / "list.json").write_text("[]")
    (watching.folders.input / "reads.json").write_text('{"method": "fitprune", "recipe": "/etc/passwd"}')
    (watching.folders.input / "latin.json").write_bytes(b"\xe9")
    for name in ("broken", "list", "reads", "latin", "missing", "../mine", "C:mine", "", "x" * 300, "a\0b", "\ud800"):
        with pytest.raises(TopsError):
            recipe(name)
    with pytest.raises(TopsError):
        recipe("x" * 300, given)


def test_a_model_is_calibrated_once_and_the_recipe_reused(
    model: TopsModel, photo: Tensor, watching: RecordingHost
) -> None:
    done = node("TOPSCalibrate").calibrate([model], [photo], [QUESTION], [0.5], ["fitted"])["result"]
    assert done[0].method == "fitprune"
    assert "50 %" in done[1]
    assert watching.steps[-1][0] <= watching.steps[-1][1]
    loaded = node("TOPSRecipe").recipe("fitted")["result"][0]
    assert loaded.resolved() == done[0].resolved()
    usage = ask(model, image=photo, pruning=loaded)["result"][3].answers[0].usage
    assert usage.kept_fraction == pytest.approx(0.5, abs=0.02)
    watching.stop_after = len(watching.steps) + 2
    with pytest.raises(Interrupted):
        node("TOPSCalibrate").calibrate([model], [photo], [QUESTION], [0.5], ["fitted"])
    assert isinstance(nodes.NODE_CLASS_MAPPINGS["TOPSCalibrate"].VALIDATE_INPUTS("../x"), str)


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


def test_video_frames_are_taken_evenly(model: TopsModel, plain: Engine) -> None:
    clip = Image.open(samples_folder() / "tops_clip.webp")
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
    ask_video = node("TOPSVideoAsk").ask
    done = ask_video(model, to_image(frames), "What colour is the star?", 3, 2.5, 8, 0.0, 0)["result"]
    message = user_message("What colour is the star?", frames[0], frames[2], frames[5])
    assert done[0] == plain.chat([message], generation=Generation(max_tokens=8)).text == "red"

    class Components:
        images, frame_rate = to_image(frames), 2.5

    class Video:
        def get_components(self) -> Components:
            return Components()

    assert ask_video(model, Video(), "What colour is the star?", 3, 99.0, 8, 0.0, 0)["result"][0] == "red"
    with pytest.raises(TopsError, match="VIDEO"):
        ask_video(model, "clip.mp4", "What?", 3, 2.5, 8, 0.0, 0)


def test_a_video_is_pruned_by_a_method_for_videos(tmp_path: Path) -> None:
    handle = TopsModel(ModelSpec(model=str(save_onevision(tmp_path)), device="cpu"))
    frames = to_image([Image.new("RGB", (60, 60), (40 * number, 90, 0)) for number in range(5)])
    (pruning,) = node("TOPSPruning").settings(method="evs", keep=0.4)
    done = node("TOPSVideoAsk").ask(handle, frames, "What happens?", 5, 2.5, 2, 0.0, 0, pruning)["result"]
    (answer,) = done[2].answers
    (video,) = answer.usage.pictures
    assert [frame.frame for frame in video.frames] == [0, 1, 2, 3, 4]
    assert video.frames[0].layer_average == video.frames[0].visual_tokens, "EVS keeps the first frame"
    assert done[1].shape[1] > 8 * 5


def test_a_picture_is_a_question_and_a_prompt_of_none_is_no_text(model: TopsModel, photo: Tensor) -> None:
    empty = ask(model, "", image=photo)["result"][0]
    assert empty
    assert ask(model, None, image=photo)["result"][0] == empty
    with pytest.raises(InvalidInput, match="The prompt is empty"):
        ask(model, None)
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSAsk"].VALIDATE_INPUTS
    # A host gives None for what is linked, and nothing for what is not.
    assert validate(prompt="", image=None) is True
    assert validate(prompt="") == "The prompt is empty; ask something, or give a picture."
    assert validate(prompt=None) is True


def test_structured_answers_satisfy_their_schema(model: TopsModel) -> None:
    pytest.importorskip("llguidance")
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"total": {"type": "integer"}, "list": {"type": "array", "items": {"const": "a"}, "minItems": 1}},
        "required": ["total", "list"],
        "additionalProperties": False,
    }
    receipt = to_image([Image.open(samples_folder() / "tops_receipt.png")])
    run = node("TOPSStructured").ask
    done = run(model, QUESTION, json.dumps(schema), "total, list.0", 64, 0.0, 0, receipt)["result"]
    read = json.loads(done[0])
    assert done[1] == [str(read["total"]), "a"]
    note = {"type": "object", "properties": {"text": {"type": "null"}}}
    optional = json.dumps(schema | {"properties": {**schema["properties"], "note": note}})
    done = run(model, QUESTION, optional, "total,note.text", 64, 0.0, 0, receipt)["result"]
    assert "note" not in json.loads(done[0])
    assert done[1] == [str(json.loads(done[0])["total"]), ""]
    with pytest.raises(InvalidInput, match=r"no field 'remark'"):
        run(model, QUESTION, optional, "remark", 64, 0.0, 0, receipt)
    with pytest.raises(InvalidInput, match=r"no field 'list\.99'"):
        run(model, QUESTION, json.dumps(schema), "list.99", 64, 0.0, 0, receipt)
    with pytest.raises(InvalidInput, match="max_tokens"):
        run(model, QUESTION, json.dumps(schema), "total", 2, 0.0, 0, receipt)
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSStructured"].VALIDATE_INPUTS
    assert isinstance(validate("/etc/passwd"), str)
    assert isinstance(validate("{"), str)


def test_the_token_map_marks_exactly_the_kept_parts(model: TopsModel, photo: Tensor) -> None:
    stats = ask(model, image=photo)["result"][3]
    draw = node("TOPSTokenMap").draw
    image, mask, report = draw(stats, "dim", 0, 0)
    kept = stats.answers[0].usage.stages[0].visual_tokens[0]
    assert mask.shape == photo.shape[:3]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(kept / 144, abs=0.01)
    assert torch.allclose(image[mask == 1], photo[mask == 1], atol=1 / 255)
    assert image[mask == 0].mean() < 0.5 * photo[mask == 0].mean()
    assert f"{kept} kept" in report
    last = draw(stats, "cutout", -1, 0)
    assert (last[1] <= mask).all()
    assert (last[0][last[1] == 0] == 1).all()
    for style in ("tint", "outline", "side by side"):
        assert draw(stats, style, 0, 0)[0].shape[0] == 1
    for stage, number, answer in ((9, 0, 0), (0, 5, 0), (0, 0, 3)):
        with pytest.raises(InvalidInput, match="There is no"):
            draw(stats, "dim", stage, number, answer)


def test_compare_shows_every_pruning(model: TopsModel, photo: Tensor) -> None:
    done = node("TOPSCompare").compare(model, photo, QUESTION, "tops,fastv", "0.222", 1, 8)["result"]
    assert "unpruned" in done[0]
    assert "cannot be met" in done[0]
    assert len(done[3].answers) == 2
    assert done[1].ndim == done[2].ndim == done[4].ndim == 4
    validate = nodes.NODE_CLASS_MAPPINGS["TOPSCompare"].VALIDATE_INPUTS
    assert validate("tops", "0.2") is True
    for methods, keep in (("best", "0.2"), ("tops", "x"), ("", "0.2"), ("fitprune:recipe=/etc/passwd", "0.2")):
        assert isinstance(validate(methods, keep), str)


def test_unload_frees_and_the_next_question_loads_again(photo: Tensor) -> None:
    handle = node("TOPSLoadModel").load("mini", "float32", "cpu", "none", "sdpa")[0]
    answer = ask(handle, image=photo)["result"][0]
    done = node("TOPSUnload").unload(answer, handle)
    assert done["result"] == (answer,)
    assert not handle.engine.is_loaded
    assert ask(handle, image=photo)["result"][0] == answer
    node("TOPSUnload").unload(None)
    assert not any(known.engine.is_loaded for known in living_handles())


def test_history_shows_as_text() -> None:
    assert str(History(({"role": "user", "content": "Hi"},))) == "user: Hi"


def test_ask_gives_the_reasoning_apart(tmp_path: Path, photo: Tensor, watching: RecordingHost) -> None:
    model = TopsModel(ModelSpec(model=str(save_thinking(tmp_path, "switched")), device="cpu"))
    done = ask(model, tokens=16, image=photo, thinking="5")
    answer, _, history, stats, _, reasoning = done["result"]
    assert answer
    assert reasoning
    assert done["ui"]["text"] == [answer]
    assert history.messages[-1] == {"role": "assistant", "content": answer}
    assert stats.answers[0].usage.reasoning_tokens == 5
    assert ask(model, tokens=16, image=photo, thinking="off")["result"][5] == ""
    assert ask(model, tokens=4, image=photo, thinking="")["result"][0] == ""


@pytest.mark.parametrize("thinking", ["5", pytest.param("off", marks=pytest.mark.full)])
def test_every_node_that_asks_gives_the_reasoning_apart(tmp_path: Path, photo: Tensor, thinking: str) -> None:
    model = TopsModel(ModelSpec(model=str(save_thinking(tmp_path, "switched")), device="cpu"))
    frames = torch.cat([photo, photo])
    video = node("TOPSVideoAsk").ask(model, frames, "What?", 2, 1.0, 8, 0.0, 0, thinking=thinking)["result"]
    listed = {"images": [photo], "thinking": [thinking]}
    captions = node("TOPSCaptionBatch").caption([model], ["caption"], [1], [8], [0.0], [0], **listed)["result"]
    read = node("TOPSStructured").ask(model, "What?", NUMBER, "n", 40, 0.0, 0, photo, thinking=thinking)["result"]
    assert json.loads(read[0])["n"] in (1, 2)
    for reasoning, answer in ((video[4], video[2]), (captions[4][0], captions[2]), (read[4], read[3])):
        assert bool(reasoning) == (thinking == "5")
        assert answer.answers[0].usage.reasoning_tokens == (5 if thinking == "5" else 0)


NUMBER = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> TopsModel:
    """A model whose coordinates are 0 to 1000 over the whole side."""
    return TopsModel(ModelSpec(model=str(save_qwen3_vl(tmp_path_factory.mktemp("finder"))), device="cpu"))


def find(finder: TopsModel, image: Tensor, **objects: Any) -> Any:
    """Return the outputs of TOPS Boxes for an answer that can only name the given objects."""
    one = {"type": "object", "properties": {name: {"const": value} for name, value in objects.items()}}
    schema = json.dumps(one | {"required": list(objects), "additionalProperties": False})
    name = next(iter(objects))
    stats = node("TOPSStructured").ask(finder, "Find it.", schema, name, 200, 0.0, 0, image, Pruning(keep=0.3))
    return node("TOPSBoxes").read(stats["result"][3], 0)


def test_boxes_are_a_mask_and_bounding_boxes_and_drawn(finder: TopsModel) -> None:
    white = torch.ones(1, 100, 200, 3)
    image, mask, bboxes, box, points, report = find(finder, white, bbox_2d=[100, 200, 300, 600], label="cat")
    assert bboxes == [[{"x": 20, "y": 20, "width": 40, "height": 40, "label": "cat"}]]
    assert box == bboxes[0][0]
    assert mask.shape == (1, 100, 200)
    assert mask[0, 20:60, 20:60].min() == 1
    assert mask.sum() == 40 * 40
    assert image.shape == white.shape
    # The frame is drawn, and nothing but it and the label.
    assert (image[0, 20:60, 20] != 1).any(dim=-1).all()
    assert (image[0, 62:] == 1).all()
    assert points == "[]"
    assert report == "cat: 20, 20 to 60, 60 (picture 0)"


def test_points_are_what_sam_reads(finder: TopsModel) -> None:
    white = torch.ones(1, 100, 200, 3)
    image, mask, bboxes, box, points, report = find(finder, white, point_2d=[500, 500], label="nose")
    assert json.loads(points) == [{"label": "nose", "picture": 0, "x": 100.0, "y": 50.0}]
    assert mask[0, 50, 100] == 1
    assert 0 < mask.sum() < 100
    assert (image != white).any()
    assert (bboxes, box) == ([[]], {"x": 0, "y": 0, "width": 200, "height": 100, "label": ""})
    assert report == "nose: 100, 50 (picture 0)"


def test_boxes_of_an_answer_without_any(model: TopsModel, photo: Tensor) -> None:
    stats = ask(model, image=torch.cat([photo, photo]))["result"][3]
    image, mask, bboxes, _, points, report = node("TOPSBoxes").read(stats, 0)
    assert torch.allclose(image, torch.cat([photo, photo]), atol=1 / 255)
    assert mask.shape == (2, *photo.shape[1:3])
    assert (mask.sum(), bboxes, points) == (0, [[], []], "[]")
    assert "no boxes" in report
    with pytest.raises(InvalidInput, match="There is no answer 3"):
        node("TOPSBoxes").read(stats, 0, 3)
    with pytest.raises(InvalidInput, match="There is no picture"):
        node("TOPSBoxes").read(ask(model, "Hello")["result"][3], 0)
