"""Test LLaVA-HR: the vision tower against its arithmetic written out, the published layout, and refused inputs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.checkpoints import PATCH_SIZE
from tests.support.checkpoints_llava_hr import FAST, NUM_FAST_LAYERS, SLOW_DEPTHS, save_llava_hr
from tops_engine.conversation.messages import read_conversation, user_message
from tops_engine.engine import Engine
from tops_engine.errors import InvalidImage, MissingDependency, ModelNotFound, UnsupportedModel
from tops_engine.families import Family, Prompt
from tops_engine.loading import load_family
from tops_engine.settings import Generation, ModelSpec, Pruning

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Reference:
    """The tower's arithmetic on the published weights, one step a line: [n, 3, size, size] -> [n, tokens, c]."""

    def __init__(self, folder: Path, eps: float = 1e-6) -> None:
        self.eps = eps
        prefix = "model.vision_tower."
        weights = load_file(folder / "model.safetensors")
        self.weights = {name.removeprefix(prefix): value for name, value in weights.items()}

    def __call__(self, pixels: Tensor) -> Tensor:
        slow, fast = self.convnext(pixels), self.embed(pixels)
        for index in range(NUM_FAST_LAYERS):
            fast = self.clip_layer(f"{CLIP}encoder.layers.{index}.", fast)
            group, rest = divmod(index + 1, NUM_FAST_LAYERS // 4)
            if rest == 0 and group < 4 and "align_stages_latent.0.gate.0.weight" in self.weights:
                fast = self.adapt(f"align_stages_latent.{group - 1}.", fast, slow)
        rows = self.to_grid(slow, fast).flatten(2).transpose(1, 2)
        return self.linear("align_stages.0.fast_proj", fast) + self.linear("align_stages.0.slow_proj", rows)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **options)

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        """Normalise over the last dimension."""
        x = (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def norm_map(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x.permute(0, 2, 3, 1), self.eps).permute(0, 3, 1, 2)

    def convnext(self, x: Tensor) -> Tensor:
        x = self.norm_map(f"{CONVNEXT}stem.1", self.conv(f"{CONVNEXT}stem.0", x, stride=4))
        for stage, depth in enumerate(SLOW_DEPTHS):
            name = f"{CONVNEXT}stages.{stage}"
            if stage > 0:
                x = self.conv(f"{name}.downsample.1", self.norm_map(f"{name}.downsample.0", x), stride=2)
            for block in range(depth):
                x = x + self.convnext_block(f"{name}.blocks.{block}", x)
        return x

    def convnext_block(self, name: str, x: Tensor) -> Tensor:
        x = self.norm_map(f"{name}.norm", self.conv(f"{name}.conv_dw", x, padding=3, groups=x.shape[1]))
        x = self.linear(f"{name}.mlp.fc2", F.gelu(self.linear(f"{name}.mlp.fc1", x.permute(0, 2, 3, 1))))
        return (x * self.weights[f"{name}.weight"]).permute(0, 3, 1, 2)

    def embed(self, pixels: Tensor) -> Tensor:
        table = self.weights[f"{CLIP}embeddings.position_embedding.weight"][1:]
        size = max(int(pixels.shape[-1] / 32 * PATCH_SIZE), math.isqrt(len(table)) * PATCH_SIZE)
        small = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=True)
        patches = self.conv(f"{CLIP}embeddings.patch_embedding", small, stride=PATCH_SIZE).flatten(2).transpose(1, 2)
        grid = table.view(math.isqrt(len(table)), -1, table.shape[-1]).permute(2, 0, 1)[None]
        if len(table) != patches.shape[1]:
            grid = F.interpolate(grid, size=(size // PATCH_SIZE,) * 2, mode="bicubic", antialias=True)
        return self.norm(f"{CLIP}pre_layrnorm", patches + grid.flatten(2).transpose(1, 2), 1e-5)

    def clip_layer(self, name: str, x: Tensor) -> Tensor:
        x = x + self.attend(f"{name}self_attn.", self.norm(f"{name}layer_norm1", x, 1e-5))
        hidden = self.linear(f"{name}mlp.fc1", self.norm(f"{name}layer_norm2", x, 1e-5))
        return x + self.linear(f"{name}mlp.fc2", hidden * (1.702 * hidden).sigmoid())

    def attend(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (torch.split(self.linear(f"{name}{part}_proj", x), 64, dim=-1) for part in "qkv")
        heads = [(a @ b.transpose(1, 2) / 8).softmax(dim=-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        return self.linear(f"{name}out_proj", torch.cat(heads, dim=-1))

    def adapt(self, name: str, fast: Tensor, slow: Tensor) -> Tensor:
        slow = self.conv(f"{name}slow_proj", F.gelu(self.conv(f"{name}slow_conv", slow)))
        slow = self.to_grid(slow, fast).flatten(2).transpose(1, 2)
        side = math.isqrt(fast.shape[1])
        grid = fast.transpose(1, 2).reshape(len(fast), FAST, side, side)
        grid = grid + self.conv(f"{name}fast_proj", F.gelu(self.conv(f"{name}fast_conv", grid, padding=3, groups=FAST)))
        fast = grid.flatten(2).transpose(1, 2)
        means = torch.cat([fast, slow], dim=-1).mean(dim=1)
        gate = self.linear(f"{name}gate.2", F.gelu(self.linear(f"{name}gate.0", means))).tanh()
        return fast + slow * gate[:, None]

    def to_grid(self, slow: Tensor, fast: Tensor) -> Tensor:
        side = math.isqrt(fast.shape[1])
        return F.interpolate(slow, size=(side, side), mode="bilinear", align_corners=True)


CLIP = "fast_vision_tower.vision_tower.vision_model."
CONVNEXT = "slow_vision_tower.vision_tower."


def load(folder: Path, **options: Any) -> Family:
    return load_family(ModelSpec(model=str(folder), device="cpu", **options))


def prepare(family: Family, *pictures: Image.Image, text: str = "What?") -> Prompt:
    return family.prepare(read_conversation([user_message(text, *pictures)]))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(ModelSpec(model=str(save_llava_hr(tmp_path_factory.mktemp("hr"))), device="cpu"))


@pytest.mark.parametrize(
    ("options", "num_tokens", "eps"),
    [
        ({"image_size": 256}, 64, 1e-6),
        ({"image_size": 128}, 16, 1e-6),
        ({"image_size": 64}, 16, 1e-6),
        ({"image_size": 128, "adapters": False}, 16, 1e-6),
        ({"image_size": 128, "slow": "convnext_xxlarge.clip_laion2b_soup"}, 16, 1e-5),
    ],
    ids=str,
)
def test_the_tower_computes_what_the_original_does(
    tmp_path: Path, picture: Picture, options: dict[str, Any], num_tokens: int, eps: float
) -> None:
    folder = save_llava_hr(tmp_path, **options)
    family = load(folder)
    prompt = prepare(family, picture(100, 70), picture(30, 60))
    pixels = prompt.pixels["pixel_values"]
    with torch.inference_mode():
        ours = family.model.model.vision_tower(pixels).last_hidden_state
        expected = Reference(folder, eps)(pixels)
    assert ours.shape == (2, num_tokens, FAST)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_pictures_are_padded_to_a_square_and_normalised_as_clips(engine: Engine) -> None:
    red = Image.new("RGB", (128, 64), (255, 0, 0))
    pixels = prepare(engine.family, red).pixels["pixel_values"][0]
    assert pixels.shape == (3, 256, 256)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    colours = (pixels * std + mean) * 255
    torch.testing.assert_close(colours[:, 128, 128], torch.tensor([255.0, 0.0, 0.0]), atol=0.1, rtol=0)
    margin = torch.tensor([float(int(value * 255)) for value in CLIP_MEAN])
    torch.testing.assert_close(colours[:, 10, 128], margin, atol=0.1, rtol=0)
    (layout,) = [span.layout for span in prepare(engine.family, red).spans]
    assert layout.grids == ((8, 8),)
    assert layout.boxes[0].tolist() == pytest.approx([0.0, -0.5, 0.125, -0.25])


def test_a_picture_whose_square_would_be_enormous_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidImage, match="A picture of 20000 x 1 pixels is too narrow for this model; crop it"):
        engine.chat([user_message("?", Image.new("RGB", (20_000, 1)))])


def test_the_prompt_is_vicunas(engine: Engine, picture: Picture) -> None:
    text = engine.family.tokenizer.decode(prepare(engine.family, picture()).input_ids)
    assert text.startswith("A chat between a curious user and an artificial intelligence assistant. ")
    assert text.endswith("questions. USER: " + "<unk>" * 64 + "\nWhat? ASSISTANT:")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vision_attention_is_the_mean_received_in_clips_last_layer(
    tmp_path: Path, picture: Picture, attention: str
) -> None:
    family = load(save_llava_hr(tmp_path), attention=attention)
    prompt = prepare(family, picture(90, 60))
    layer = family.model.model.vision_tower.fast.encoder.layers[-1]
    assert layer.self_attn.config._attn_implementation == attention
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        ((tokens,),) = family.encode([prompt])
        normed = layer.layer_norm1(seen[0])
        projections = (layer.self_attn.q_proj, layer.self_attn.k_proj)
        q, k = (make(normed).view(64, 2, 64).transpose(0, 1) for make in projections)
        received = (q @ k.transpose(1, 2) / 8).softmax(dim=-1).mean(dim=(0, 1))
    handle.remove()
    torch.testing.assert_close(tokens.vision_attention(), received)


@pytest.mark.parametrize("adapters", [True, False])
def test_flops_are_those_torch_counts(tmp_path: Path, picture: Picture, adapters: bool) -> None:
    engine = Engine.load(ModelSpec(model=str(save_llava_hr(tmp_path, adapters=adapters)), device="cpu"))
    messages = [user_message("What?", picture(100, 70), picture(60, 60))]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answer = engine.chat(messages, Pruning(method="random", keep=0.3), Generation(max_tokens=3))
    assert answer.flops.total == counter.get_total_flops()


def test_pickled_weights_are_not_read_and_the_error_says_how_to_convert_them(tmp_path: Path, picture: Picture) -> None:
    folder = save_llava_hr(tmp_path)
    weights = load_file(folder / "model.safetensors")
    expected = load(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(ModelNotFound, match="no safetensors files") as caught:
        load(folder)
    # The command in the message does what it promises.
    code = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    converted = load(folder)
    prompt = prepare(expected, picture())
    with torch.inference_mode():
        torch.testing.assert_close(converted.project([prompt]), expected.project([prompt]))


def test_a_sentencepiece_tokenizer_is_read_or_says_what_reads_it(tmp_path: Path, picture: Picture) -> None:
    folder = save_llava_hr(tmp_path)
    (folder / "tokenizer.json").unlink()
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [f"A chat between a curious user and an assistant, number {number}." for number in range(200)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    special = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    family = load(folder)
    assert len(prepare(family, picture()).spans[0].positions) == 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tops_engine.families.parts.original.find_spec", lambda name: None)
        with pytest.raises(MissingDependency, match="sentencepiece"):
            load(folder)


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = save_llava_hr(tmp_path)
    weights = load_file(folder / "model.safetensors")
    without_tower = {name: value for name, value in weights.items() if "slow_vision_tower" not in name}
    save_file(without_tower, folder / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"stem\.0"):
        load(folder)
    del weights["model.vision_tower.align_stages_latent.1.gate.2.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"lacks 1 weights, such as .*align_stages_latent\.1\.gate\.2\.bias"):
        load(folder)


def test_the_original_layout_of_other_models_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large"}')
    with pytest.raises(UnsupportedModel, match="in the layout of transformers"):
        load(tmp_path)


def test_gradients_of_the_picture_arrive_where_the_boxes_say(engine: Engine) -> None:
    red = np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (48, 1))
    prompt = prepare(engine.family, Image.fromarray(np.stack([red, red, red], axis=-1)))
    pixels = prompt.pixels["pixel_values"][0, 0] * CLIP_STD[0] + CLIP_MEAN[0]
    values = F.avg_pool2d(pixels[None], 32).flatten()
    boxes = prompt.spans[0].layout.boxes
    inside = (boxes[:, 1] >= 0) & (boxes[:, 3] <= 1)
    assert (values - boxes[:, [0, 2]].mean(dim=1))[inside].abs().max() < 0.03
