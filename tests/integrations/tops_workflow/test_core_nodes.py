"""The basic core nodes: what they compute, and files only inside the host's folders."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, ExifTags, Image
from tops_workflow.core_nodes import CORE_NODES
from tops_workflow.core_nodes.composites import ImageCompositeMasked, MaskComposite
from tops_workflow.core_nodes.images import (
    ImageBatch,
    ImageCrop,
    ImageScale,
    LoadImage,
    LoadImageMask,
    PreviewImage,
    SaveImage,
)
from tops_workflow.core_nodes.masks import GrowMask, ImageToMask, InvertMask, MaskToImage
from tops_workflow.core_nodes.values import PreviewAny, SaveText
from tops_workflow.core_nodes.videos import CreateVideo, GetVideoComponents, LoadVideo, SaveVideo
from tops_workflow.formats import read_workflow
from tops_workflow.host import Folders, QuietHost, hosted

from tests.conftest import Picture
from tops_engine.errors import InvalidImage, InvalidInput


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    folders = Folders.under(tmp_path)
    for folder in (folders.input, folders.output, folders.temp):
        folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    with hosted(QuietHost(folders)):
        yield folders


def test_a_picture_is_loaded_with_its_alpha_as_mask(folders: Folders, picture: Picture) -> None:
    original = picture(5, 3).convert("RGBA")
    original.putalpha(64)
    original.save(folders.input / "a.png")
    image, mask = LoadImage().load_image("a.png")
    assert image.shape == (1, 3, 5, 3)
    assert mask.shape == (1, 3, 5)
    red, green, blue, _ = original.getpixel((4, 2))  # type: ignore[misc]
    assert torch.allclose(image[0, 2, 4], torch.tensor([red, green, blue]) / 255)
    assert torch.allclose(mask, torch.tensor(1 - 64 / 255))
    (green_mask,) = LoadImageMask().load_image("a.png", "green")
    assert torch.equal(green_mask, image[..., 1])
    picture(5, 3).save(folders.input / "b.png")
    assert not LoadImage().load_image("b.png")[1].any()


def test_a_photograph_is_turned_upright_and_an_animation_is_a_batch(folders: Folders, picture: Picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(8, 4).save(folders.input / "turned.jpg", exif=exif)
    assert LoadImage().load_image("turned.jpg")[0].shape == (1, 8, 4, 3)
    frames = [picture(6, 6, seed) for seed in range(3)]
    frames[0].save(folders.input / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert LoadImage().load_image("clip.webp")[0].shape == (3, 6, 6, 3)


def test_deep_grey_and_floats_are_loaded_as_the_engine_reads_them(folders: Folders) -> None:
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(np.round(grey * 65535).astype(np.uint16)).save(folders.input / "deep.png")
    Image.fromarray(grey).save(folders.input / "float.tif")
    Image.fromarray(grey * 1.02).save(folders.input / "over.tif")
    for name in ("deep.png", "float.tif", "over.tif"):
        image, mask = LoadImage().load_image(name)
        assert image.shape == (1, 8, 8, 3)
        assert torch.allclose(image[0], torch.from_numpy(grey)[..., None].expand(-1, -1, 3), atol=0.021)
        assert torch.allclose(image[..., 0], LoadImageMask().load_image(name, "red")[0])
        assert not mask.any()


def test_a_photograph_with_a_malformed_exif_entry_is_loaded_upright(folders: Folders, picture: Picture) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ResolutionUnit] = 2
    malformed = exif.tobytes().replace(b"\x01\x28\x00\x03", b"\x01\x28\x00\x02")
    picture(8, 4).save(folders.input / "phone.jpg", exif=malformed)
    assert LoadImage().load_image("phone.jpg")[0].shape == (1, 8, 4, 3)


def test_a_renamed_eps_never_reaches_ghostscript(
    folders: Folders, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    picture(8, 4).save(folders.input / "a.png", "EPS")
    with pytest.raises(OSError, match=r"broken|truncated|file"), Image.open(folders.input / "a.png") as opened:
        opened.load()
    assert called.exists()  # what Pillow does when nobody restricts it
    called.unlink()
    for load in (LoadImage().load_image, lambda name: LoadImageMask().load_image(name, "red")):
        with pytest.raises(InvalidImage, match="not a picture in a known format"):
            load("a.png")
    assert not called.exists()


def test_the_list_shows_pictures_and_the_fingerprint_follows_the_file(folders: Folders, picture: Picture) -> None:
    picture(4, 4).save(folders.input / "b.png")
    (folders.input / "notes.txt").write_text("no")
    (folders.input / "sets" / ".cache").mkdir(parents=True)
    for name in ("sets/c.JFIF", "sets/.d.png", "sets/.cache/e.png"):
        picture(4, 4).save(folders.input / name, "JPEG")
    assert LoadImage.INPUT_TYPES()["required"]["image"][0] == ["b.png", "sets/c.JFIF"]
    assert LoadImage().load_image("sets/c.JFIF")[0].shape == (1, 4, 4, 3)
    before = LoadImage.IS_CHANGED("b.png")
    assert LoadImage.IS_CHANGED("b.png") == before
    picture(5, 5).save(folders.input / "b.png")
    assert LoadImage.IS_CHANGED("b.png") != before


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "x.png [nowhere]", "none.png", "a" * 300 + ".png"]
)
def test_files_outside_the_folders_are_refused(folders: Folders, name: str) -> None:
    assert LoadImage.VALIDATE_INPUTS(name) is not True
    with pytest.raises((InvalidInput, InvalidImage)):
        LoadImage().load_image(name)


def test_links_that_lead_outside_are_refused(folders: Folders) -> None:
    (folders.input / "link.png").symlink_to(folders.input.parent / "secret.png")
    assert LoadImage.VALIDATE_INPUTS("link.png") is not True


@pytest.mark.parametrize("prefix", ["../out", "/tmp/out", "a/../../out", "", "."])
def test_nothing_is_saved_outside_the_output_folder(folders: Folders, prefix: str) -> None:
    with pytest.raises(InvalidInput):
        SaveImage().save_images(torch.zeros(1, 4, 4, 3), prefix)
    assert not list(folders.output.rglob("*.png"))


def test_saved_pictures_are_numbered_on_and_carry_the_workflow(folders: Folders) -> None:
    batch = torch.rand(2, 4, 6, 3)
    graph = {"nodes": [], "links": [], "é": "日本"}
    prompt = {"1": {"class_type": "X", "inputs": {"text": 'quo"te {braces}'}}}
    first = SaveImage().save_images(batch, "sets/run", prompt, {"workflow": graph})["ui"]["images"]
    again = SaveImage().save_images(batch[:1], "sets/run")["ui"]["images"]
    assert [entry["filename"] for entry in [*first, *again]] == [f"run_0000{number}_.png" for number in (1, 2, 3)]
    assert {entry["subfolder"] for entry in first} == {"sets"}
    path = folders.output / "sets" / first[1]["filename"]
    found = read_workflow(path)
    assert (found.graph, found.prompt) == (json.loads(json.dumps(graph)), prompt)
    loaded, _ = LoadImage().load_image(f"sets/{first[1]['filename']} [output]")
    assert torch.allclose(loaded[0], batch[1], atol=0.51 / 255)


def test_previews_go_to_the_temp_folder(folders: Folders) -> None:
    (shown,) = PreviewImage().save_images(torch.zeros(1, 4, 4, 3))["ui"]["images"]
    assert shown["type"] == "temp"
    assert (folders.temp / shown["filename"]).is_file()


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_scaling_gives_the_size_asked_for(method: str) -> None:
    image = torch.rand(2, 8, 16, 3)
    assert ImageScale().upscale(image, method, 10, 6, "disabled")[0].shape == (2, 6, 10, 3)
    assert ImageScale().upscale(image, method, 0, 4, "disabled")[0].shape == (2, 4, 8, 3)
    assert ImageScale().upscale(image, method, 0, 0, "disabled")[0] is image
    constant = torch.full((1, 8, 16, 3), 0.25)
    assert torch.allclose(ImageScale().upscale(constant, method, 5, 7, "center")[0], torch.tensor(0.25), atol=1 / 255)


def test_cropping_to_the_middle_keeps_the_middle() -> None:
    image = torch.zeros(1, 4, 8, 3)
    image[:, :, 2:6] = 1
    assert ImageScale().upscale(image, "nearest-exact", 4, 4, "center")[0].min() == 1


def test_batching_brings_the_second_to_the_firsts_size_and_channels() -> None:
    (joined,) = ImageBatch().batch(torch.zeros(1, 4, 4, 4), torch.full((2, 8, 12, 3), 0.5))
    assert joined.shape == (3, 4, 4, 4)
    assert torch.allclose(joined[1:, ..., :3], torch.tensor(0.5))
    assert (joined[1:, ..., 3] == 1).all()


def test_cropping_stays_inside_the_picture() -> None:
    image = torch.rand(1, 6, 8, 3)
    (cropped,) = ImageCrop().crop(image, 4, 3, 2, 1)
    assert torch.equal(cropped, image[:, 1:4, 2:6])
    assert ImageCrop().crop(image, 100, 100, 50, 50)[0].shape == (1, 1, 1, 3)


def test_masks_become_pictures_and_back() -> None:
    mask = torch.rand(2, 4, 5)
    (image,) = MaskToImage().mask_to_image(mask)
    assert image.shape == (2, 4, 5, 3)
    assert torch.equal(ImageToMask().image_to_mask(image, "green")[0], mask)
    assert torch.equal(InvertMask().invert(mask)[0], 1 - mask)


@pytest.mark.parametrize(
    ("value", "text"), [("plain", "plain"), (3, "3"), (True, "True"), ({"a": [1]}, '{"a": [1]}'), ([object], None)]
)
def test_anything_is_shown_as_text(value: object, text: str | None) -> None:
    (shown,) = PreviewAny().main(value)["ui"]["text"]
    assert shown == (text if text is not None else str(value))


def test_damaged_pictures_are_refused(folders: Folders) -> None:
    (folders.input / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InvalidImage, match=r"bad\.png"):
        LoadImage().load_image("bad.png")


def test_definitions_are_listable_without_any_folder(tmp_path: Path) -> None:
    with hosted(QuietHost(Folders.under(tmp_path / "nothing"))):
        for cls in CORE_NODES.values():
            assert cls.INPUT_TYPES()


def test_masks_grow_and_shrink_by_pixels() -> None:
    mask = torch.zeros(1, 7, 9)
    mask[0, 3, 4] = 1
    (cross,) = GrowMask().expand_mask(mask, 2, True)
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    distance = (rows - 3).abs() + (columns - 4).abs()
    assert torch.equal(cross[0], (distance <= 2).float())
    (square,) = GrowMask().expand_mask(mask, 2, False)
    assert torch.equal(square[0], (torch.maximum((rows - 3).abs(), (columns - 4).abs()) <= 2).float())
    assert torch.equal(GrowMask().expand_mask(square, -2, False)[0], mask)
    assert torch.equal(GrowMask().expand_mask(torch.ones(1, 3, 3), -5, True)[0], torch.ones(1, 3, 3))


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("multiply", 0.18), ("add", 0.9), ("subtract", 0.3), ("and", 0.0), ("or", 1.0), ("xor", 1.0)],
)
def test_masks_are_combined_where_the_second_lies(operation: str, expected: float) -> None:
    destination, source = torch.full((4, 6), 0.6), torch.full((1, 3, 3), 0.3)
    (combined,) = MaskComposite().combine(destination, source, 4, 2, operation)
    assert combined.shape == (1, 4, 6)
    assert torch.allclose(combined[0, 2:, 4:], torch.tensor(expected))
    assert torch.allclose(combined[0, :2], torch.tensor(0.6))
    assert torch.equal(MaskComposite().combine(destination, source, 100, 100, operation)[0][0], destination)
    (of_other_batch,) = MaskComposite().combine(destination, source.expand(2, 3, 3), 4, 2, operation)
    assert torch.equal(of_other_batch[:, :, 4:6], combined[:, :, 4:6])


def test_pictures_are_put_on_others_where_the_mask_says() -> None:
    below, above = torch.zeros(2, 4, 6, 3), torch.ones(1, 3, 3, 3)
    mask = torch.tensor([[1.0, 0.0, 1.0]]).expand(3, 3)[None]
    (pasted,) = ImageCompositeMasked().execute(below, above, 4, 2, False, mask)
    assert torch.equal(pasted[1, 2:, 4:, 0], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert pasted[:, :2].sum() == 0
    assert below.sum() == 0
    assert ImageCompositeMasked().execute(below, above, 0, 0, True)[0].min() == 1
    assert torch.equal(ImageCompositeMasked().execute(below, above, 90, 90, False)[0], below)


def test_a_video_is_made_saved_and_loaded_again(folders: Folders) -> None:
    frames = torch.linspace(0, 1, 12).reshape(12, 1, 1, 1).expand(12, 32, 48, 3)
    (video,) = CreateVideo().execute(frames, 6.0)
    assert video.get_components().frame_rate == 6
    saved = SaveVideo().execute(video, "clips/ramp", prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
    (place,) = saved["ui"]["images"]
    assert place == {"filename": "ramp_00001_.mp4", "subfolder": "clips", "type": "output"}
    (folders.output / "clips" / "ramp_00001_.mp4").rename(folders.input / "ramp.mp4")
    assert LoadVideo.INPUT_TYPES()["required"]["file"][0] == ["ramp.mp4"]
    assert LoadVideo.VALIDATE_INPUTS("ramp.mp4") is True
    assert LoadVideo.VALIDATE_INPUTS("../secret.mp4") is not True
    images, audio, rate = GetVideoComponents().execute(LoadVideo().execute("ramp.mp4")[0])
    assert audio is None
    assert rate == pytest.approx(6, abs=0.01)
    assert torch.allclose(images, frames, atol=0.03)


@pytest.mark.parametrize(("kind", "content"), [("txt", '{"a": "é"}'), ("json", '{\n  "a": "é"\n}')])
def test_a_text_is_saved(folders: Folders, kind: str, content: str) -> None:
    for number in (1, 2):
        saved = SaveText().execute('{"a": "é"}', "texts/answer", kind)
        assert saved["ui"]["files"] == [
            {"filename": f"answer_0000{number}.{kind}", "subfolder": "texts", "type": "output"}
        ]
    assert (folders.output / "texts" / f"answer_00001.{kind}").read_text(encoding="utf-8") == content
