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
from tops_engine.errors import InvalidInput, MissingDependency, ModelNotFound, UnsupportedModel
from tops_engine.settings import Pruning

VLLM = "vllm.entrypoints.cli.main"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@takes_settings
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or folder, or `mini`.")],
    pruning: Pruning,
) -> None:
    """Serve a model by vLLM, an OpenAI-compatible server, with pictures pruned before the language model.

    All other options go to `vllm serve`, such as --port 8000 or --tensor-parallel-size 2; the model comes first. It
    listens to this machine alone unless --host says otherwise, and fetches pictures only from domains that
    --allowed-media-domains names. With --trust-request-mm-kwargs, a request may keep less by its own tops_keep.
    """
    from vllm_tops.closed import closed_environment, closed_options
    from vllm_tops.settings import environment_of, for_vllm, ray_environment, refuse_tower_adapters

    if model.startswith("-"):
        raise InvalidInput("Name the model first, then the options: tops serve llava-hf/llava-1.5-7b-hf --keep 0.222.")
    pruning = for_vllm(pruning)
    refuse_tower_adapters("--enable-tower-connector-lora" in context.args)
    _require_plugin()
    source, named = _source(model)
    _check_model(source, context.args)
    kept = f"{pruning.keep:.1%}" if isinstance(pruning.keep, float) else str(pruning.keep)
    err.print(
        escape(f"Of each picture's visual tokens {kept} stay, chosen by {pruning.label} before the language model."),
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    closed = closed_options(context.args)
    if "--host" in closed:
        err.print("Only this machine can ask it; --host 0.0.0.0 lets others in.", style="dim", highlight=False)
    command = [sys.executable, "-m", VLLM, "serve", source, *named, *closed, *context.args]
    variables = closed_environment(os.environ) | environment_of(pruning) | ray_environment(os.environ)
    os.execve(sys.executable, command, os.environ | variables)


def _require_plugin() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependency(
            "vLLM is not installed in this environment; pip install 'tops-engine[vllm]' into one of its own."
        )
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="tops"):
        raise MissingDependency("vLLM would not find its plugin, since tops-engine is not installed here; install it.")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "tops" not in allowed.split(","):
        raise InvalidInput(f"VLLM_PLUGINS={allowed} keeps vLLM from loading the plugin; add tops to it.")


def _source(model: str) -> tuple[str, list[str]]:
    """Where the weights are, and options that make the server call the model by the name given here."""
    if model != "mini":
        return model, []
    from tops_engine.mini import mini_path

    return str(mini_path()), ["--served-model-name", "mini"]


def _check_model(source: str, options: list[str]) -> None:
    """Find out before vLLM starts that it could not prune the model."""
    from huggingface_hub.errors import HFValidationError
    from transformers import PreTrainedConfig

    from tops_engine.checkpoints import first_line
    from vllm_tops.closed import value_of
    from vllm_tops.models import PRUNED, unsupported

    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=value_of("--revision", options))
    except (OSError, HFValidationError) as error:
        raise ModelNotFound(f"The checkpoint {source!r} cannot be found: {first_line(error)}") from error
    architectures: list[Any] = config.get("architectures") or ["A model that names no architecture"]
    if architectures[0] not in PRUNED:
        raise UnsupportedModel(unsupported(architectures[0]))
