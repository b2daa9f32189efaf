"""Test vision towers that drop patches inside: the rest is as if no layer attended to them."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Picture
from tests.support.towers import (
    EXACT,
    PACKED,
    ROUNDING,
    TILES,
    Loaded,
    conversations,
    encoded,
    prepared,
    towers,
    values,
)
from tops_engine.conversation.messages import user_message
from tops_engine.engine import Engine
from tops_engine.families import Family, qwen2_vl
from tops_engine.families.parts.packed_run import PackedRun
from tops_engine.families.parts.tower_run import PatchCut, TileRun, run_layers
from tops_engine.families.parts.vision_signals import captured_calls
from tops_engine.families.parts.vision_tower import PatchTower, TileLayers
from tops_engine.families.prompt import Prompt
from tops_engine.settings import Generation, Pruning
from tops_engine.tower import TowerOptions

CUT = TowerOptions("none", 0.4, 1)


@towers(TILES)
def test_the_engine_s_loop_is_the_tower(loaded: Loaded, picture: Picture) -> None:
    prompts, tower = prepared(loaded, picture)[:1], plain(loaded.family.tower)
    hidden = tower.embed(pixels_of(loaded.family, prompts))
    for layer in tower.layers:
        hidden = layer(hidden, *tower.arguments)
    with captured_calls(tower.layers[-1]) as (last,):
        encoded(loaded.family, prompts)
    assert torch.equal(hidden, last.output)


@towers(TILES)
def test_dropped_patches_are_as_if_no_layer_attended_to_them(loaded: Loaded, picture: Picture) -> None:
    family, prompts = loaded.family, prepared(loaded, picture)[:2]
    run = family.tower_run(CUT)
    assert isinstance(run, TileRun)
    with torch.inference_mode():
        (got, *_), *_ = family.encode_run(prompts, run)
    assert run.cut is not None
    tiles = pixels_of(family, prompts)[: len(run.cut.kept)]
    expected = masked_tiles(family, tiles, run.cut)
    again = PatchCut(run.cut.layer, run.cut.keep, run.cut.has_cls, run.cut.block)
    with torch.inference_mode():
        hidden = run_layers(patches(family.tower), tiles, again)
    assert torch.equal(again.kept, run.cut.kept)
    assert torch.allclose(hidden, expected, atol=ROUNDING)
    assert got.num_remaining < got.layout.num_tokens


def patches(tower: object) -> PatchTower:
    assert isinstance(tower, PatchTower)
    return tower


def plain(tower: object) -> TileLayers:
    layers = patches(tower).layers
    assert layers is not None
    return layers


def pixels_of(family: Family, prompts: Sequence[Prompt]) -> Tensor:
    """Return all tiles that the tower sees: [t, 3, height, width]."""
    seen = [tile for prompt in prompts for tile in prompt.pixels["pixel_values"].flatten(0, -4)]
    counts = [sum(family.tile_counts(prompt)) for prompt in prompts]  # type: ignore[attr-defined]
    if len(seen) == sum(counts):
        return torch.stack(seen)
    # LLaVA-NeXT fills up pictures with fewer tiles.
    return torch.cat([seen.pixels for prompt in prompts for seen in family._tower_inputs([prompt])])  # type: ignore[attr-defined]


@torch.inference_mode()
def masked_tiles(family: Family, tiles: Tensor, cut: PatchCut) -> Tensor:
    """Run all patches through all layers; from the cut on nothing attends to those that were dropped.

    Returns
    -------
    The kept rows of the last layer, those of a token one after the other.
    """
    tower = plain(family.tower)
    hidden, first = tower.embed(tiles), int(cut.has_cls)
    side = round((hidden.shape[1] - first) ** 0.5)
    number = torch.arange(side * side).view(side // cut.block, cut.block, side // cut.block, cut.block)
    rows = number.transpose(1, 2).reshape(-1, cut.block**2)[cut.kept].flatten(1) + first
    rows = torch.cat([torch.arange(first).expand(len(tiles), -1), rows], dim=1)
    mask = torch.full((len(tiles), 1, 1, hidden.shape[1]), float("-inf"))
    mask.scatter_(3, rows[:, None, None], 0.0)
    mask = mask.expand(-1, -1, hidden.shape[1], -1)

    def with_mask(_module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, keywords | {"attention_mask": mask}

    for layer_number, layer in enumerate(tower.layers):
        attention: Any = getattr(layer, "self_attn", None) or layer.attention
        handle = attention.register_forward_pre_hook(with_mask, with_kwargs=True) if layer_number >= cut.layer else None
        hidden = layer(hidden, *tower.arguments)
        if handle is not None:
            handle.remove()
    return hidden[torch.arange(len(tiles))[:, None], rows]


@towers(PACKED)
def test_dropped_groups_are_as_if_no_block_attended_to_them(loaded: Loaded, picture: Picture) -> None:
    family, prompts = loaded.family, prepared(loaded, picture)
    run = family.tower_run(CUT)
    assert isinstance(run, PackedRun)
    with torch.inference_mode():
        got = [image for images in family.encode_run(prompts, run) for image in images]
        expected = masked_packed(family, prompts, run)
    features = torch.cat([image.features for image in got])
    starts = np.cumsum([0, *(image.layout.num_tokens for image in got)])
    kept = torch.cat([image.survivors + start for image, start in zip(got, starts, strict=False)])
    assert len(kept) < len(features)
    assert torch.allclose(features[kept], expected[kept], atol=ROUNDING)
    assert (features[np.setdiff1d(np.arange(len(features)), kept)] == 0).all()


def masked_packed(family: Any, prompts: Sequence[Prompt], run: PackedRun) -> Tensor:
    """Run all groups through all blocks; from the cut on nothing attends to dropped ones."""
    visual, unit = family.visual, family.tower.shape.patches_per_token
    pixels = torch.cat([patches for prompt in prompts for patches, _ in qwen2_vl._visuals(prompt)])
    hidden, rope = run._embed(pixels)
    groups, kept = run._read[0], run._read[1]
    stays = torch.zeros(len(groups.places), dtype=torch.bool)
    stays[kept.places] = True
    hidden, (cos, sin) = hidden.flatten(0, 1), [part.flatten(0, 1) for part in rope]
    rotate = sys.modules[type(visual).__module__].apply_rotary_pos_emb_vision
    for number, block in enumerate(visual.blocks):
        part = (groups.frame if family.tower.is_full(number) else groups.window).repeat_interleave(unit)
        allowed = part[:, None] == part[None]
        if number >= CUT.layer:  # type: ignore[operator]
            allowed &= stays.repeat_interleave(unit)[None]
            allowed |= torch.eye(len(allowed), dtype=torch.bool)  # dropped rows read something, and nobody reads them
        heads = block.attn.num_heads
        normed = block.norm1(hidden)
        q, k, v = block.attn.qkv(normed).view(len(hidden), 3, heads, -1).unbind(1)
        q, k = rotate(q, k, cos, sin)
        weights = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        weights = weights.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        hidden = hidden + block.attn.proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return family.tower.in_prompt_order(visual.merger(hidden), run._frames)


@towers(TILES, PACKED)
def test_tokens_and_layouts_of_what_remains(loaded: Loaded, picture: Picture) -> None:
    prompts = prepared(loaded, picture)
    for image in encoded(loaded.family, prompts, TowerOptions("exact", 0.4)):
        rest = image.remaining()
        assert image.survivors is not None
        assert torch.equal(rest.layout.boxes, image.layout.boxes[image.survivors])
        assert torch.equal(rest.features, image.features[image.survivors])
        for name, value in values(rest).items():
            if not name.startswith("deepstack"):
                assert len(value) == image.num_remaining, name
        assert (~image.layout.shows_picture).sum() == (~rest.layout.shows_picture).sum()


@towers(TILES, PACKED)
def test_flops_are_those_that_torch_counts(loaded: Loaded, picture: Picture) -> None:
    family, prompts = loaded.family, prepared(loaded, picture)[:2]
    for options in (EXACT, TowerOptions("exact", 0.5), TowerOptions("patches", 0.5)):
        if options.dedup not in family.dedups:
            continue
        run = family.tower_run(options)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            got = family.encode_run(prompts, run)
        saved = sum(image.tower.saved_flops for images in got for image in images if image.tower)
        # Choosing patches multiplies, too: attention rows and similarities, which the formulas leave out.
        formula = sum(map(family.vision_flops, prompts)) - saved
        assert formula == counter.get_total_flops() if options.keep == 1 else formula <= counter.get_total_flops()


@towers(TILES, PACKED)
def test_an_answer_reports_what_the_tower_kept(loaded: Loaded, picture: Picture) -> None:
    asked = conversations(loaded, picture)[0]
    pruning = Pruning(method="divprune", keep=0.2, tower_keep=0.5)
    first = loaded.engine.chat(asked, pruning, Generation(max_tokens=3))
    usage = first.usage.tower
    assert usage is not None
    assert usage.patches == usage.encoded
    assert usage.kept_tokens < first.usage.visual_tokens
    assert round(first.usage.layer_average / first.usage.visual_tokens, 1) == 0.2
    again = loaded.engine.chat(asked, pruning, Generation(max_tokens=3))  # the picture is known now
    assert again.token_ids == first.token_ids
    assert again.usage.tower is None
    assert again.flops.vision == 0
    for (_, one), (_, other) in zip(first.token_map.stages, again.token_map.stages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    loaded.engine.forget()


@pytest.mark.parametrize("loaded", ["llava_next", "qwen3_vl"], indirect=True)
def test_a_second_question_reads_the_same_tokens_as_a_first_one(loaded: Loaded, picture: Picture) -> None:
    pruning, generation = Pruning(keep=0.3, tower_keep=0.6, dedup="exact"), Generation(max_tokens=4)
    first = [user_message("What?", picture(120, 90), picture(80, 130, 1))]
    answered = {"role": "assistant", "content": [{"type": "text", "text": "That."}]}
    second = [*first, answered, user_message("And why?")]
    loaded.engine.chat(first, pruning, generation)
    warm = loaded.engine.chat(second, pruning, generation)
    loaded.engine.forget()
    cold = loaded.engine.chat(second, pruning, generation)
    assert warm.usage.reused_tokens > 0
    assert warm.token_ids == cold.token_ids
    assert warm.usage.stages == cold.usage.stages
    loaded.engine.forget()


@pytest.mark.parametrize("loaded", ["llava", "qwen3_vl"], indirect=True)
@pytest.mark.parametrize("method", ["tops", "visionzip", "cdpruner", "prumerge_plus", "random", "hiprune", "vispruner"])
def test_every_kind_of_method_chooses_among_what_the_tower_kept(loaded: Loaded, picture: Picture, method: str) -> None:
    options: dict[str, Any] = {"text_space": "llm"} if method == "cdpruner" else {}
    pruning = Pruning(method=method, keep=0.25, tower_keep=0.6, **options)
    answers = loaded.engine.batch(conversations(loaded, picture)[:2], pruning, Generation(max_tokens=3))
    for answer in answers:
        assert len(answer.token_ids) == 3
        assert answer.usage.stages[0].visual_tokens


def test_tokens_of_several_pictures_are_chosen_together(engines: Callable[[str], Engine], picture: Picture) -> None:
    pruning = Pruning(keep=0.2, budget_per="prompt", tower_keep=0.6, merge=True)
    asked = [user_message("What?", picture(), picture(56, 56, 1))]
    answer = engines("llava").chat(asked, pruning, Generation(max_tokens=2))
    assert answer.usage.allocation is not None
