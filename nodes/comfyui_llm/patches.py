"""Make a clone of a CLIP that reads pruned pictures, by ComfyUI's own object patches.

ComfyUI puts the patches in place whenever it loads the model through this clone, and takes them away when it loads it
through another one. Weights, offloading, LoRA and quantised files are left to it, and the original stays as it was.
"""

from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tops_engine.settings import Pruning

from .language_model import LanguageModel
from .prompt_run import PromptRun

#: Answers whose report is kept. Several Generate Text nodes behind one node may run before their reports are read.
KEPT_RUNS = 16

#: The name under which a clone holds its runs, among the attachments of its patcher.
ATTACHMENT = "tops_pruned_runs"


class Patch:
    """Stands for a method of ComfyUI while the clone is loaded: calls a replacement, which gets the method first."""

    def __init__(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        self.original, self.replacement = original, replacement

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.replacement(self.original, *arguments, **keywords)


class PrunedRuns:
    """The prompts that one clone of a CLIP reads.

    Parameters
    ----------
    model : of the CLIP.
    pruning : what to keep where a prompt is answered.
    encoding : what to keep where a prompt is encoded for an image model; None leaves these as they are.

    Attributes
    ----------
    finished : the last runs that generated an answer, the newest at the end.
    last_encoded : the last prompt that was encoded for an image model and pruned.
    """

    def __init__(self, model: LanguageModel, pruning: Pruning, encoding: Pruning | None) -> None:
        self.model, self.pruning, self.encoding = model, pruning, encoding
        self.finished: deque[PromptRun] = deque(maxlen=KEPT_RUNS)
        self.last_encoded: PromptRun | None = None
        self._running: PromptRun | None = None
        self._encoded: PromptRun | None = None
        self._asked: dict[str, Any] | None = None

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """Return what stands for which method, by its path in the model of the patcher."""
        encoder, transformer = self.model.name, f"{self.model.name}.transformer"
        found: dict[str, Callable[..., Any]] = {
            f"{encoder}.generate": self.generate,
            f"{transformer}.preprocess_embed": self.preprocess_embed,
            f"{transformer}.model.forward": self.decode,
        }
        if hasattr(self.model.transformer, "init_kv_cache"):
            found[f"{transformer}.init_kv_cache"] = self.init_kv_cache
        if self.encoding is not None:
            found[f"{encoder}.process_tokens"] = self.process_tokens
        for number in range(len(self.model.decoder.layers)):
            found[f"{transformer}.model.layers.{number}.forward"] = self.layer(number)
        return found

    def generate(self, original: Callable[..., Any], tokens: Any, *arguments: Any, **keywords: Any) -> Any:
        """Answer a prompt (``SDClipModel.generate``)."""
        prompts = next(iter(tokens.values())) if isinstance(tokens, dict) else tokens
        if len(prompts) != 1:
            return original(tokens, *arguments, **keywords)
        with self._run_of(prompts[0], self.pruning) as run:
            token_ids = original(tokens, *arguments, **keywords)
        run.finish(token_ids)
        self.finished.append(run)
        return token_ids

    def process_tokens(self, original: Callable[..., Any], tokens: Any, device: Any) -> Any:
        """Embed a prompt that is encoded for an image model (``SDClipModel.process_tokens``)."""
        if self._running is not None or self.encoding is None or len(tokens) != 1:
            return original(tokens, device)
        with self._run_of([(entry,) for entry in tokens[0]], self.encoding) as run:
            encoded = original(tokens, device)
            if not isinstance(encoded, tuple) or not run.is_pruned:
                return encoded
            embeds, mask, _, known = encoded
            reading = run.begin_reading(embeds, self._positions(embeds, mask, known))
        self._encoded = self.last_encoded = run
        mask = mask[:, reading.entered.to(mask.device)]
        entered = reading.decoder_arguments({"embeds": embeds})["embeds"]
        return entered, mask, [int(mask.sum())], reading.notes(known)

    def preprocess_embed(self, original: Callable[..., Any], embed: dict[str, Any], device: Any) -> Any:
        """Embed a picture (``preprocess_embed`` of the model)."""
        if self._running is None:
            return original(embed, device=device)
        return self._running.embed(original, embed, device)

    def init_kv_cache(self, original: Callable[..., Any], batch: int, max_cache_len: int, *others: Any) -> Any:
        """Make the cache (``init_kv_cache`` of the model) without room for the tokens that are dropped at once."""
        run = self._running
        if run is not None and run.is_pruned:
            max_cache_len -= run.num_dropped_first
        return original(batch, max_cache_len, *others)

    def decode(self, original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Run the decoder (its ``forward``) on the prompt or on a token of the answer."""
        run, embeds = self._running, keywords.get("embeds")
        if self._asked is not None:
            self._asked |= keywords
            return embeds, None
        if self._encoded is not None:
            reading, self._encoded = self._encoded.reading, None
            assert reading is not None
            return original(*arguments, **keywords | {"position_ids": reading.position_ids})
        if run is None or not run.is_pruned:
            return original(*arguments, **keywords)
        if run.reading is not None and run.reading.has_ended:
            with run.clock("decode"):
                return original(*arguments, **run.reading.token_arguments(keywords))
        if not run.reads_prompt(embeds):
            return original(*arguments, **keywords)
        with run.clock("prefill"):
            assert isinstance(embeds, Tensor)
            reading = run.begin_reading(embeds, keywords.get("position_ids"))
            result = original(*arguments, **reading.decoder_arguments(keywords))
        run.end_reading()
        return result

    def layer(self, number: int) -> Callable[..., Any]:
        """Return what stands for the ``forward`` of a decoder layer."""

        def forward(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
            reading = None if self._running is None else self._running.reading
            if reading is None:
                return original(*arguments, **keywords)
            if reading.has_ended:
                return original(*arguments, **reading.token_layer_arguments(number, keywords))
            return reading.after_layer(number, original(*arguments, **reading.before_layer(number, keywords)))

        return forward

    @contextmanager
    def _run_of(self, entries: Any, pruning: Pruning) -> Any:
        device = self.model.encoder.execution_device or self.model.decoder.embed_tokens.weight.device
        self._running = run = PromptRun(self.model, pruning, [entry[0] for entry in entries], device)
        try:
            yield run
        finally:
            self._running = None

    def _positions(self, embeds: Tensor, mask: Tensor, known: Any) -> Tensor | None:
        """Return the positions that ComfyUI gives the tokens of a prompt that it encodes: [axes, N], None if it counts.

        They are computed on the way to the decoder, which is stopped before it begins.
        """
        self._asked, encoder = {}, self.model.encoder
        try:
            attention_mask = mask if encoder.enable_attention_masks else None
            encoder.transformer(None, attention_mask, embeds=embeds, embeds_info=known)
            positions: Tensor | None = self._asked.get("position_ids")
        finally:
            self._asked = None
        return positions


def pruned_clone(clip: Any, model: LanguageModel, pruning: Pruning, with_encoding: bool = False) -> Any:
    """Return a clone of a CLIP that reads pruned pictures.

    Parameters
    ----------
    model : of the CLIP.
    pruning : what to keep.
    with_encoding : whether pictures are pruned too where the CLIP encodes a prompt for an image model; only before the
        language model, since all its layers encode the same tokens.
    """
    runs = PrunedRuns(model, pruning, pruning.before_the_llm() if with_encoding else None)
    pruned = clip.clone()
    for path, replacement in runs.replacements().items():
        original = pruned.patcher.get_model_object(path)
        if isinstance(original, Patch):
            original = original.original  # of another node of this kind, whose place this one takes
        pruned.patcher.add_object_patch(path, Patch(original, replacement))
    pruned.patcher.attachments[ATTACHMENT] = runs
    return pruned


def runs_of(clip: Any) -> PrunedRuns | None:
    """Return the prompts that a pruned clone reads; None for another CLIP."""
    runs: PrunedRuns | None = clip.patcher.attachments.get(ATTACHMENT)
    return runs
