"""Check TOPS Prune LLM on ComfyUI's own models. It runs in ComfyUI's Python and prints what it found as JSON.

Arguments: ComfyUI's folder, this repository, the kinds of models (``core_models.BUILDERS``).
"""

import importlib
import inspect
import json
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
models = importlib.import_module("core_models")  # this folder is no package here

NUM_NEW = 8

#: ComfyUI's Qwen2.5-VL has no output head of its own and no end tokens: it only encodes prompts for image models.
ONLY_ENCODING = ("qwen2_5_vl", "text")


class Checks:
    """The checks of one kind of model."""

    def __init__(self, pack: ModuleType, kind: str) -> None:
        self.nodes = pack.nodes.NODE_CLASS_MAPPINGS
        self.node = self.nodes["TOPSPruneLLM"]()
        self.settings = self.nodes["TOPSPruning"]().settings
        self.runs_of = importlib.import_module("pack.nodes.comfyui_llm.patches").runs_of
        self.kind = kind
        self.clip = models.small_clip(kind)
        generator = torch.Generator().manual_seed(3)
        self.pictures = [torch.rand(1, *size, 3, generator=generator) for size in ((144, 192), (96, 144))]
        self.base = self.ask(self.clip) if kind not in ONLY_ENCODING else []

    def ask(self, clip: Any, channels: int = 3) -> list[int]:
        extra = [torch.ones(*picture.shape[:3], channels - 3) for picture in self.pictures]
        pictures = [torch.cat(pair, dim=-1) for pair in zip(self.pictures, extra, strict=True)]
        return clip.generate(models.tokens_with_pictures(pictures), do_sample=False, max_length=NUM_NEW)

    def pruned(self, clip: Any = None, **values: Any) -> Any:
        (pruning,) = self.settings(**values)
        return self.node.prune(clip or self.clip, pruning)["result"][0]

    def info(self) -> str:
        try:
            return self.node.prune(self.clip)["result"][1]
        except Exception as error:
            return str(error)

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = {"info": self.info()}
        if self.kind == "gemma4_unified":
            found["refused"] = found["info"]
        if self.kind == "text":
            found["own_nodes"] = self.own_nodes()
            return found | {"passes_through": self.node.prune(self.clip)["result"][0] is self.clip}
        if self.kind in ("qwen2_5_vl", "qwen3_vl"):
            found["encoding"] = self.encoding()
        found["own_nodes"] = self.own_nodes()
        if self.kind in ONLY_ENCODING:
            return found
        if self.kind == "qwen3_vl":
            found["lora"] = self.lora()
            found["float8"] = self.float8()
            found["methods"] = self.methods()
            found["wrong_budget"] = self.wrong_budget()
        nothing = models.tokens_with_pictures([])
        without = [
            clip.generate(nothing, do_sample=False, max_length=3)
            for clip in (self.clip, self.pruned(method="random", keep=0.3))
        ]
        found["no_picture"] = without[0] == without[1]
        found["varied"] = len(set(self.base)) > 1
        found["all_kept_is_the_model_itself"] = self.ask(self.pruned(method="random", keep=1.0)) == self.base
        method = "divprune" if self.kind == "gemma4_unified" else "tops"
        few = self.pruned(method=method, keep=0.3)
        answer = self.ask(few)
        run = self.runs_of(few).finished[-1]
        found["kept"] = [[len(kept) for kept in segment.kept[0]] for segment in run.reading.segments]
        found["layers"] = [segment.start for segment in run.reading.segments]
        found["changes_the_answer"] = answer != self.base
        other = self.pruned(method="random", keep=0.5)
        found["original_untouched"] = self.ask(self.clip) == self.base
        elsewhere = self.ask(other)
        found["side_by_side"] = [
            self.ask(few) == answer,
            self.ask(other) == elsewhere,
            self.ask(self.clip) == self.base,
        ]
        found["a_second_node_takes_the_place"] = self.ask(self.pruned(few, method="random", keep=0.5)) == elsewhere
        found["alpha_is_left_out"] = self.ask(few, channels=4) == answer
        takes_positions = "position_ids" in inspect.signature(run.model.transformer.generate).parameters
        if self.kind != "gemma4" or takes_positions:
            found["first_stage"] = self.first_stage()
        if self.kind not in ("qwen3_5", "gemma4_unified"):  # a recurrent layer has no mask that hides a token
            found["later_stage"] = self.later_stage()
        return found

    def lora(self) -> list[bool]:
        """Patch weights as a LoRA does, before and behind the pruning, and for our own nodes."""
        (key,) = [key for key in self.clip.cond_stage_model.state_dict() if key.endswith("layers.0.mlp.up_proj.weight")]
        weight = self.clip.cond_stage_model.state_dict()[key]
        change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.3
        with_lora = self.clip.clone()
        with_lora.add_patches({key: ("diff", (change,))})
        answer = self.ask(with_lora)
        behind = self.pruned(method="random", keep=0.5)
        behind.add_patches({key: ("diff", (change,))})
        before = self.pruned(with_lora, method="random", keep=0.5)
        same = self.ask(self.pruned(with_lora, method="random", keep=1.0)) == answer
        own = self.own_answer(with_lora) == self.own_answer(with_lora) != self.own_answer(self.clip)
        return [answer != self.base, same, self.ask(before) == self.ask(behind), own]

    def float8(self) -> list[bool]:
        """Run a model whose decoder has weights in eight bits, as files for little memory have."""
        clip = models.small_clip(self.kind)
        for module in clip.cond_stage_model.qwen3vl_4b.transformer.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
        same = self.ask(self.pruned(clip, method="random", keep=1.0)) == self.ask(clip)
        fewer = self.pruned(clip, keep=0.3)
        return [
            same,
            len(self.ask(fewer)) > 0 and self.runs_of(fewer).finished[-1].is_pruned,
            bool(self.own_answer(clip)),
        ]

    def own_answer(self, clip: Any) -> list[int]:
        """Return the tokens of TOPS Ask on a CLIP."""
        (model,) = self.nodes["TOPSLoadFromClip"]().load(clip)
        return self.asked(model)

    def asked(self, model: Any, **pruning: Any) -> list[int]:
        """Return the tokens of TOPS Ask."""
        (settings,) = self.settings(**pruning)
        answer = self.nodes["TOPSAsk"]().ask(
            model, "What is shown?", NUM_NEW, 0.0, 0, pruning=settings, image=self.pictures[0]
        )
        return list(answer["result"][3].answers[0].token_ids)

    def own_nodes(self) -> dict[str, Any]:
        """Compare our nodes on the CLIP with our nodes on a checkpoint with its weights, or note how they refuse."""
        try:
            (shared,) = self.nodes["TOPSLoadFromClip"]().load(self.clip)
        except ValueError as error:
            return {"refused": str(error)}
        with tempfile.TemporaryDirectory() as folder:
            models.save_checkpoint(self.clip, shared.engine.family, Path(folder))
            own = models.loaded_model(folder)
            few, whole = {"keep": 0.3}, {"method": "random", "keep": 1.0}
            answers = [[self.asked(model, **pruning) for pruning in (few, whole)] for model in (shared, own)]
        changes = answers[0][0] != answers[0][1]
        return {"equal": answers[0] == answers[1], "changes": changes, "untouched": self.ask(self.clip) == self.base}

    def methods(self) -> dict[str, str]:
        """Run each method, or note how it is refused before the run."""
        found = {}
        tokens = models.tokens_with_pictures(self.pictures)
        for method in self.nodes["TOPSPruning"].INPUT_TYPES()["required"]["method"][0]:
            try:
                clip = self.pruned(method=method, keep=0.6)
            except ValueError as error:
                found[method] = f"refused: {error}"
                continue
            clip.generate(tokens, do_sample=False, max_length=2)
            found[method] = "ran"
        return found

    def wrong_budget(self) -> str:
        try:
            self.pruned(options="flops=0.3")
        except ValueError as error:
            return str(error)
        return ""

    def encoding(self) -> list[bool]:
        """Compare encoded prompts with those of the unpatched model, whose mask hides the dropped tokens."""
        tokens = self.clip.tokenize("A red circle", images=self.pictures[:1])

        def encode(clip: Any) -> torch.Tensor:
            return clip.encode_from_tokens(tokens)

        base = encode(self.clip)
        (pruning,) = self.settings(method="random", keep=0.5)
        left = encode(self.node.prune(self.clip, pruning)["result"][0])
        pruned_clip = self.node.prune(self.clip, pruning, image_prompts=True)["result"][0]
        pruned = encode(pruned_clip)
        runs = self.runs_of(pruned_clip)
        rows = runs.last_encoded.reading.entered
        self.clip.load_model()
        encoder = runs.model.encoder
        process = encoder.process_tokens

        def hidden(*arguments: Any) -> Any:
            embeds, mask, counts, info = process(*arguments)
            shown = torch.zeros_like(mask)
            shown[:, rows] = 1
            return embeds, shown, counts, info

        encoder.process_tokens = hidden
        try:
            masked = encode(self.clip)
        finally:
            del encoder.process_tokens
        gone = base.shape[1] - pruned.shape[1]
        start = masked.shape[1] - runs.last_encoded.num_tokens  # negative where a template is cut off
        kept = (rows + start)[rows + start >= 0]
        return [
            torch.equal(base, left),
            gone == runs.last_encoded.num_tokens - len(rows) > 0,
            torch.allclose(pruned, masked[:, kept], atol=1e-4, rtol=1e-3),
            not torch.allclose(pruned, base[:, kept], atol=1e-4, rtol=1e-3),
        ]

    def first_stage(self) -> bool:
        """Compare with the unpatched model on the embeddings of the kept rows."""
        clip = self.pruned(method="random", keep=0.5, positions="contiguous")
        pruned = self.ask(clip)
        run = self.runs_of(clip).finished[-1]
        transformer = run.model.transformer
        given: dict[str, Any] = {}
        generate = transformer.generate

        def keep(embeds: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
            rows = run.reading.entered
            short = keywords.copy()
            if self.kind == "gemma4":  # layers that read the keys of others need the positions that these had
                short["position_ids"] = rows[None]
            if short.get("position_ids") is not None and self.kind != "gemma4":
                short["position_ids"] = short["position_ids"][:, rows]
            if short.get("visual_pos_masks") is not None:
                mask = short["visual_pos_masks"][0]
                places = (mask.cumsum(0) - 1)[rows][mask[rows]]
                short["visual_pos_masks"] = mask[None, rows]
                short["deepstack_embeds"] = [part[places] for part in short["deepstack_embeds"]]
            if short.get("initial_input_ids") is not None:
                short["initial_input_ids"] = short["initial_input_ids"][:, rows]
            if short.get("embeds_info"):
                sizes = iter([len(kept) for kept in run.reading.segments[0].kept[0]])
                places = iter([int((rows < span[0]).sum()) for span in run.spans])
                short["embeds_info"] = [
                    info | {"index": next(places), "size": next(sizes)} for info in short["embeds_info"]
                ]
            given["ran"] = True
            return generate(embeds[..., rows, :], *arguments, **short)

        transformer.generate = keep
        try:
            return self.ask(self.clip) == pruned and given["ran"]
        finally:
            del transformer.generate

    def later_stage(self) -> bool:
        """Compare with the unpatched model whose later layers have masks that hide the dropped tokens."""
        clip = self.pruned(method="tops", schedule="3:6,6:3", positions="original")
        pruned = self.ask(clip)
        run = self.runs_of(clip).finished[-1]
        layers = run.model.decoder.layers
        self.clip.load_model()  # takes the patches of the pruned clone away
        for segment in run.reading.segments[1:]:
            hidden = torch.zeros(run.num_tokens, dtype=torch.bool)
            for span, kept in zip(run.spans, segment.kept[0], strict=True):
                hidden[span] = True
                hidden[span[kept]] = False
            for layer in layers[segment.start : segment.end]:
                layer.forward = Masked(layer.forward, hidden)
        try:
            return self.ask(self.clip) == pruned
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)


class Masked:
    """A decoder layer that does not see some tokens of the prompt."""

    def __init__(self, forward: Any, hidden: torch.Tensor) -> None:
        self.forward, self.hidden, self.num_new = forward, hidden, 0

    def __call__(self, **keywords: Any) -> Any:
        x, mask = keywords["x"], keywords["attention_mask"]
        if mask is None:
            self.num_new += 1
            mask = torch.zeros(1, len(self.hidden) + self.num_new, dtype=x.dtype)
        mask = mask.clone()
        mask[..., : len(self.hidden)].masked_fill_(self.hidden, torch.finfo(x.dtype).min / 4)
        return self.forward(**keywords | {"attention_mask": mask})


def is_missing(error: Exception) -> bool:
    """Return whether this ComfyUI lacks a model, rather than that something failed."""
    return getattr(error, "name", "") in ("comfy.text_encoders.qwen3vl", "qwen3vl", "Gemma4_12B_Config") or (
        isinstance(error, ImportError) and "comfy.text_encoders" in str(error)
    )


def main() -> None:
    comfyui, root, *kinds = sys.argv[1:]
    pack = models.load_pack(comfyui, root)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for kind in kinds:
            try:
                found[kind] = Checks(pack, kind).run()
            except (ImportError, AttributeError) as error:
                found[kind] = {"lacks": str(error)} if is_missing(error) else {"error": traceback.format_exc()}
            except Exception:
                found[kind] = {"error": traceback.format_exc()}
    print(json.dumps(found))


main()
