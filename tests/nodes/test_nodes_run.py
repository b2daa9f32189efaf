"""Test the nodes on the embedded model, called as a graph calls them."""

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
from tests.nodes.conftest import QUESTION, RecordingHost, ask, node
from tests.support.checkpoints_thinking import save_thinking
from tests.support.checkpoints_video import save_onevision
from tests.support.usage import token_counts
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, InvalidInput, TopsError
from tops_engine.settings import Generation, ModelSpec, Pruning

NUMBER = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'


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
