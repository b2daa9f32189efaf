"""Refuse models and options that cannot be pruned, before the server starts.

vLLM asks an entry of its ``MODELS_CONFIG_MAP`` to verify the configuration of each model, in the process that the user
started, before it starts others and loads weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tops_engine.errors import InvalidInput, TopsError

Check = Callable[[Any], None]

#: Tokens for which vLLM's cache of encoded pictures has room, at least; vLLM's own default on large GPUs.
ENCODER_CACHE = 8192


class Verified:
    """An entry of vLLM's map: it runs checks of ours, then those that vLLM has for the model.

    Args:
        checks: Functions of vLLM's configuration that raise an error for what cannot be pruned.
        vllms: vLLM's own entry, or None.
    """

    def __init__(self, checks: Iterable[Check], vllms: Any) -> None:
        self.checks, self.vllms = tuple(checks), vllms

    def verify_and_update_model_config(self, model_config: Any) -> None:
        """Verify the model's part of the configuration as vLLM does."""
        if self.vllms is not None:
            self.vllms.verify_and_update_model_config(model_config)

    def verify_and_update_config(self, vllm_config: Any) -> None:
        """Verify the configuration.

        Raises:
            SystemExit: If it cannot be pruned; the process ends with one sentence and no traceback.
        """
        try:
            for check in self.checks:
                check(vllm_config)
        except TopsError as error:
            raise SystemExit(f"TOPS: {error}") from None
        if self.vllms is not None:
            self.vllms.verify_and_update_config(vllm_config)


def checks_of(architecture: str) -> list[Check]:
    """Return the checks of an architecture, and what is set in its configuration."""
    checks: list[Check] = [enlarge_encoder_cache, refuse_adapters, refuse_vllms_video_pruning]
    if architecture.startswith("Llava"):
        checks.append(require_plain_tower)
    if architecture.startswith("Qwen"):
        checks.append(require_whole_pictures)
    return checks


def enlarge_encoder_cache(vllm_config: Any) -> None:
    """Give vLLM's cache of encoded pictures room for more than one batch.

    By default it holds as many tokens as a batch, often 2,048. A question about a picture whose tokens are in the
    prefix cache needs the encoded picture too, for the block of the KV cache that holds its end. If it is not there,
    the tower and the selection run again, which costs more than pruning saves of such a request.
    """
    scheduler = vllm_config.scheduler_config
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, ENCODER_CACHE)


def refuse_tower_adapters(enabled: bool) -> None:
    """Refuse LoRA adapters of the vision tower (``--enable-tower-connector-lora``).

    vLLM would count the rows of the adapter by the tokens that remain of a picture.

    Raises:
        InvalidInput: If they are enabled.
    """
    if enabled:
        raise InvalidInput(
            "LoRA adapters of the vision tower cannot be applied when its tokens are pruned; leave out "
            "--enable-tower-connector-lora, or merge the adapter into the weights of the model."
        )


def refuse_adapters(vllm_config: Any) -> None:
    """Refuse LoRA adapters of the vision tower in vLLM's configuration; see :func:`refuse_tower_adapters`."""
    lora = vllm_config.lora_config
    refuse_tower_adapters(lora is not None and lora.enable_tower_connector_lora)


def refuse_video_pruning(enabled: bool) -> None:
    """Refuse vLLM's own pruning of videos (``--video-pruning-rate``), which has a budget of its own.

    Raises:
        InvalidInput: If it is enabled.
    """
    if enabled:
        raise InvalidInput(
            "TOPS_KEEP prunes videos too, so vLLM's own pruning of videos cannot be added; leave out "
            "--video-pruning-rate, and set TOPS_METHOD (--method of tops serve) to evs or vidcom2 for vLLM's choices."
        )


def refuse_vllms_video_pruning(vllm_config: Any) -> None:
    """Refuse vLLM's own pruning of videos in its configuration; see :func:`refuse_video_pruning`."""
    refuse_video_pruning(vllm_config.model_config.multimodal_config.is_multimodal_pruning_enabled())


def require_plain_tower(vllm_config: Any) -> None:
    """Refuse LLaVA models whose tokens are not the patches of a CLIP or SigLIP tower.

    Raises:
        InvalidInput: If the tower is Pixtral's, or [CLS] is one of the tokens.
    """
    config = vllm_config.model_config.hf_config
    kind, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if (kind, strategy) not in {("clip_vision_model", "default"), ("siglip_vision_model", "full")}:
        raise InvalidInput(
            f"TOPS in vLLM prunes patches of a CLIP or SigLIP tower, but this model has {kind} with "
            f"vision_feature_select_strategy={strategy!r}; serve it without TOPS_KEEP."
        )


def require_whole_pictures(vllm_config: Any) -> None:
    """Refuse options with which pruning of Qwen-VL would be wrong.

    Raises:
        InvalidInput: If the tower is compiled or its ranks split pictures, if other ranks or a draft model would run
            without the coordinates of kept tokens, or if CUDA graphs would hold them.
    """
    multimodal, parallel = vllm_config.model_config.multimodal_config, vllm_config.parallel_config
    drafts = vllm_config.speculative_config
    refused = {
        "--mm-encoder-tp-mode data": multimodal.mm_encoder_tp_mode == "data",
        "compile_mm_encoder": vllm_config.compilation_config.compile_mm_encoder,
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
        "--enable-dbo": parallel.enable_dbo,
        "speculative decoding by another model": drafts is not None and drafts.uses_draft_kv_cache(),
        "VLLM_USE_V2_MODEL_RUNNER=0 and CUDA graphs": _first_runner_has_graphs(vllm_config),
    }
    for option, asked in refused.items():
        if asked:
            raise InvalidInput(f"TOPS cannot prune Qwen-VL with {option}; remove that option or unset TOPS_KEEP.")


def _first_runner_has_graphs(vllm_config: Any) -> bool:
    # The first model runner lets positions be changed only within the forward pass, which CUDA graphs would record.
    from vllm.platforms import current_platform

    eager = vllm_config.model_config.enforce_eager or current_platform.is_cpu()
    return not (eager or vllm_config.use_v2_model_runner)
