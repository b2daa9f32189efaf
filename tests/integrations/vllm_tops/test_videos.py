"""Compare vLLM's pruned model classes with the engine: both give the same tokens for the same frames of a video."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from vllm_tops.settings import for_vllm, kept_tokens

from tests.conftest import Picture
from tests.integrations.vllm_tops.test_models import BLOCKS, HEADS, INTERLEAVED, Served, assert_same
from tests.support.checkpoints_internvl import save_internvl
from tests.support.checkpoints_qwen import save_qwen2_5_vl, save_qwen2_vl, save_qwen3_vl
from tests.support.checkpoints_video import save_onevision
from tops_engine.conversation.messages import read_conversation
from tops_engine.engine import Engine
from tops_engine.media.videos import Video
from tops_engine.methods import VisualTokens
from tops_engine.settings import Generation, ModelSpec, Pruning

pytestmark = pytest.mark.vllm

BUILDERS: dict[str, Callable[..., Path]] = {
    # As published: at most the tokens of nine tiles.
    "llava-onevision": partial(save_onevision, grid=4, most_tiles=9),
    "internvl": save_internvl,
    "qwen2-vl": partial(save_qwen2_vl, rope_scaling=BLOCKS),
    "qwen2.5-vl": partial(save_qwen2_5_vl, rope_scaling=BLOCKS),
    "qwen3-vl": partial(save_qwen3_vl, head_dim=32, rope_scaling=INTERLEAVED),
}

METHODS = [
    "tops",
    "divprune",
    "visionzip",
    "pooling",
    "evs",
    "vidcom2",
    "fastvid",
    "holitom",
    "prunevid",
    "flashvid",
    "dycoke",
]

# A video of one second and one of three, of other sizes.
VIDEOS = [((168, 112), 2), ((112, 168), 6)]


class ServedVideos(Served):
    """A checkpoint that vLLM and the engine have loaded, for requests with videos."""

    def video_request(self, videos: Sequence[Any], **options: Any) -> dict[str, Any]:
        """Process a request with videos, each a list of frames at two frames a second, as vLLM does."""
        given = [(np.stack([np.asarray(frame) for frame in frames]), metadata(len(frames))) for frames in videos]
        items = self.processor.info.parse_mm_data({"video": given})
        token = self.processor.info.get_tokenizer().convert_tokens_to_ids(self.engine.family.video_token)
        inputs: Any = self.processor([token] * len(videos), mm_items=items, hf_processor_mm_kwargs=options)
        return {
            "counts": [place.get_num_embeds() for place in inputs["mm_placeholders"]["video"]],
            "hashes": inputs["mm_hashes"]["video"],
            "features": [("video", item) for item in inputs["mm_kwargs"]["video"]],
        }

    def encoded(self, frames: Sequence[Image.Image]) -> VisualTokens:
        """Return the engine's tokens of a video."""
        content = [{"type": "video", "video": list(frames), "fps": 2.0}, {"type": "text", "text": "?"}]
        family = self.engine.family
        with torch.inference_mode():
            ((tokens,),) = family.encode([family.prepare(read_conversation([{"role": "user", "content": content}]))])
        return tokens

    def num_text_tokens(self, frames: Sequence[Image.Image]) -> int:
        """Return the number of text tokens that are part of a video."""
        family, config = self.engine.family, self.engine.family.model.config
        if config.model_type not in ("internvl", "qwen3_vl"):
            return 0
        layout = self.encoded(frames).layout
        text = family.video_text(
            Video(list(frames), [number / 2 for number in range(len(frames))], len(frames), len(frames) / 2), layout
        )
        return len(family.tokenizer(text, add_special_tokens=False).input_ids) - layout.num_tokens

    def expected_of(self, frames: Sequence[Image.Image], pruning: Pruning) -> tuple[Tensor, Tensor]:
        """Return the tokens of a video that the engine keeps: indices and features."""
        tokens = self.encoded(frames)
        with torch.inference_mode():
            count = kept_tokens(pruning, tokens.layout.num_tokens)
            (selection,) = pruning.method_instance.select_visual([tokens], [count])
        features = tokens.features[selection.indices] if selection.features is None else selection.features
        return selection.indices, features


def metadata(num_frames: int) -> dict[str, Any]:
    return {
        "fps": 2.0,
        "duration": num_frames / 2,
        "total_num_frames": num_frames,
        "frames_indices": list(range(num_frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


@pytest.fixture(scope="module", params=list(BUILDERS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedVideos]:
    import vllm_tops

    folder = BUILDERS[request.param](tmp_path_factory.mktemp("vllm") / request.param, **HEADS)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("TOPS_KEEP", "0.5")
        # vLLM's own runner for CPUs does this before it loads a model.
        patch.setattr(torch.accelerator, "empty_cache", lambda: None)
        vllm_tops.register()
        yield ServedVideos(folder, stack)


@pytest.fixture
def videos(picture: Picture) -> list[list[Image.Image]]:
    return [[picture(*size, seed) for seed in range(count)] for size, count in VIDEOS]


def visual(tokens: Tensor, features: Tensor) -> Tensor:
    """Return the rows of a video's tokens that are nearest to features, in their order; text is between the frames."""
    distances = torch.cdist(tokens, features, compute_mode="donot_use_mm_for_euclid_dist")
    return tokens[distances.argmin(dim=0).sort().values]


@pytest.mark.parametrize("method", METHODS)
def test_a_video_becomes_the_tokens_that_the_engine_keeps(
    served: ServedVideos, videos: list[list[Image.Image]], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("TOPS_METHOD", method)
    for keep in (0.5, 0.2):
        request = served.video_request(videos, tops_keep=keep)
        pruning = for_vllm(Pruning.from_label(method, keep))
        for frames, count, tokens in zip(videos, request["counts"], served.embeddings(request), strict=True):
            indices, features = served.expected_of(frames, pruning)
            assert count == len(tokens) == len(indices) + served.num_text_tokens(frames)
            assert_same(visual(tokens, features), features)


def test_all_tokens_are_those_of_vllm_where_nothing_is_to_be_dropped(
    served: ServedVideos, videos: list[list[Image.Image]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.multimodal.utils import group_and_batch_mm_kwargs
    from vllm_tops.requests import keeps_of

    monkeypatch.setenv("TOPS_KEEP", "1.0")
    request = served.video_request(videos)
    own: Any
    (own,) = [kind for kind in type(served.model).__mro__ if kind.__name__.endswith("ForConditionalGeneration")]
    ((_, _, pixels),) = group_and_batch_mm_kwargs(request["features"], device="cpu")
    keeps_of(pixels)
    with torch.inference_mode():
        vllm = [tokens.flatten(0, -2) for tokens in own.embed_multimodal(served.model, **pixels)]
    for tokens, unpruned in zip(served.embeddings(request), vllm, strict=True):
        unpruned = unpruned[:, : served.width]
        assert torch.equal(visual(tokens, unpruned), unpruned)


def test_videos_of_one_request_may_have_budgets_of_their_own(
    served: ServedVideos, videos: list[list[Image.Image]]
) -> None:
    request = served.video_request(videos, tops_keep=[0.2, None])
    few, half = served.video_request(videos[:1], tops_keep=0.2), served.video_request(videos[1:])
    assert request["counts"] == few["counts"] + half["counts"]
    assert request["hashes"] == few["hashes"] + half["hashes"]
    assert request["hashes"][0] != served.video_request(videos[:1])["hashes"][0]
    with pytest.raises(ValueError, match="tops_keep has 1 budgets for 0 pictures and then 2 videos; give one for each"):
        served.video_request(videos, tops_keep=[0.2])
    with pytest.raises(ValueError, match=r"tops_keep=0\.9 keeps \d+ of a video's \d+ tokens, but the server"):
        served.video_request(videos, tops_keep=0.9)


def test_answers_about_videos_are_those_of_the_engine(tmp_path: Path, picture: Picture) -> None:
    from tests.integrations.vllm_tops.servers import OPTIONS, TOPS, as_url, asking, environment, serving

    folder = BUILDERS["llava-onevision"](tmp_path / "onevision", **HEADS)
    engine = Engine.load(ModelSpec(model=str(folder), device="cpu"))
    frames = [as_jpeg(picture(168, 112, seed)) for seed in range(4)]
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)
    asked = {"type": "video_url", "video_url": {"url": url}}
    decoded = {"type": "video", "video": [Image.open(io.BytesIO(frame)) for frame in frames]}
    image, text = picture(120, 90, 7), {"type": "text", "text": "What is shown?"}
    decoded_picture = {"type": "image", "image": image}
    picture_part = {"type": "image_url", "image_url": {"url": as_url(image)}}
    command = [*TOPS, "serve", str(folder), "--keep", "0.4", "--served-model-name", "mini", *OPTIONS]
    with serving([(command, environment())], tmp_path) as (server,):
        for before, part in (([], []), ([decoded_picture], [picture_part])):
            answer = engine.chat(
                [{"role": "user", "content": [*before, decoded, text]}],
                Pruning(keep=0.4, stages="first"),
                Generation(max_tokens=12),
            )
            request = asking("", max_tokens=12) | {"messages": [{"role": "user", "content": [*part, asked, text]}]}
            completion = server.client.chat.completions.create(**request)
            assert completion.usage.prompt_tokens == answer.usage.input_tokens
            # If an answer ends within a character, only one of the two shows the replacement character.
            assert completion.choices[0].message.content.rstrip("\ufffd") == answer.text.rstrip("\ufffd")


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
