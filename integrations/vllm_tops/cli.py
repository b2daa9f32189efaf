"""`tops serve`: vLLM's server, pruned."""

import importlib.metadata
import importlib.util
import os
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from tops_engine.cli.app import app
from tops_engine.cli.options import takes_settings
from tops_engine.cli.output import err
from tops_engine.errors import InvalidInput, MissingDependency, ModelNotFound, UnsupportedModel, quote, reason_of
from tops_engine.settings import Pruning

VLLM = "vllm.entrypoints.cli.main"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@takes_settings
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or folder, or `mini`.")],
    pruning: Pruning,
) -> None:
    """Serve a model with vLLM, an OpenAI-compatible server, and prune pictures and videos before the language model.

    Give the model first. All other options, such as --port 8000 or --tensor-parallel-size 2, go to `vllm serve`. The
    server accepts connections only from this machine unless --host is given, and fetches pictures only from the domains
    in --allowed-media-domains. With --trust-request-mm-kwargs, a request can set a smaller budget by tops_keep.
    """
    from vllm_tops.checks import refuse_tower_adapters, refuse_video_pruning
    from vllm_tops.closed import closed_environment, closed_options, value_of
    from vllm_tops.settings import environment_of, for_vllm, ray_environment
    from vllm_tops.versions import refuse_other_versions

    if model.startswith("-"):
        raise InvalidInput("Name the model first, then the options: tops serve llava-hf/llava-1.5-7b-hf --keep 0.222.")
    pruning = for_vllm(pruning)
    refuse_tower_adapters("--enable-tower-connector-lora" in context.args)
    refuse_video_pruning(value_of("--video-pruning-rate", context.args) not in (None, "0", "0.0"))
    _require_plugin()
    refuse_other_versions()
    source, named = _source(model)
    _check_model(source, context.args)
    kept = f"{pruning.budget:.1%}" if isinstance(pruning.budget, float) else str(pruning.budget)
    sentence = f"Keeping {kept} of the visual tokens of each picture and video, chosen by {pruning.label}."
    err.print(escape(sentence), style="dim", highlight=False, soft_wrap=True)
    closed = closed_options(context.args)
    if "--host" in closed:
        message = "The server accepts connections only from this machine; use --host 0.0.0.0 to accept all others."
        err.print(message, style="dim", highlight=False, soft_wrap=True)
    command = [sys.executable, "-m", VLLM, "serve", source, *named, *closed, *context.args]
    variables = closed_environment(os.environ) | environment_of(pruning) | ray_environment(os.environ)
    os.execve(sys.executable, command, os.environ | variables)


def _require_plugin() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependency(
            "vLLM is not installed in this environment; run pip install 'tops-engine[vllm]' in a separate environment."
        )
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="tops"):
        raise MissingDependency(
            "vLLM cannot find its plugin because tops-engine is not installed in this environment; install it."
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "tops" not in allowed.split(","):
        raise InvalidInput(f"VLLM_PLUGINS={allowed} does not load the plugin; add tops to the list.")


def _source(model: str) -> tuple[str, list[str]]:
    """Return where the weights are, and the options that make the server use the given model name."""
    if model != "mini":
        return model, []
    from tops_engine.mini import mini_path

    return str(mini_path()), ["--served-model-name", "mini"]


def _check_model(source: str, options: list[str]) -> None:
    """Check that vLLM can prune the model, before vLLM starts.

    Raises:
        ModelNotFound: If the checkpoint has no readable config.
        UnsupportedModel: If its architecture is none of :data:`vllm_tops.models.PRUNED`.
    """
    from huggingface_hub.errors import HFValidationError
    from transformers import PreTrainedConfig

    from tops_engine.checkpoints import checkpoint_source
    from vllm_tops.closed import value_of
    from vllm_tops.models import PRUNED, unsupported

    revision = value_of("--revision", options)
    folder = checkpoint_source(source, revision)
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    except (OSError, HFValidationError) as error:
        raise ModelNotFound(f"The checkpoint {quote(source)} cannot be found: {reason_of(error)}.") from error
    architectures: list[Any] = config.get("architectures") or ["A model that names no architecture"]
    if architectures[0] not in PRUNED:
        raise UnsupportedModel(unsupported(architectures[0]))
