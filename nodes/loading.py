"""TOPS Load Model."""

import time
from pathlib import Path
from typing import Any

import torch

from tops_engine.curated_models import QUESTION_GB, curated_model, curated_models
from tops_engine.device.memory import total_memory
from tops_engine.errors import InvalidInput, ModelNotFound, quote
from tops_engine.settings import DEFAULT_MODEL, ModelSpec

from .asking import TEXT_INTERVAL
from .comfyui_host import MODEL_KINDS, host, in_comfyui, refusal, stop_if_interrupted
from .models import NodeModel, model_handle
from .servers import API_KEY, SERVERS, ServedModel, allowed_server, check_encode
from .sockets import MODEL
from .widgets import Widget, advanced, settings_from, widget

FIELDS = ModelSpec.model_fields
DEVICES = ["auto", "cpu", "cuda", "mps"]

SERVER_TIP = (
    "Ask the model behind this OpenAI-compatible server, such as vLLM's, in place of one here; hub_id is then its "
    "name there (empty: its only one), and nothing else matters. Empty: a model here. Servers on other machines have "
    f"to be named in the environment variable {SERVERS}; a key for those named there comes from {API_KEY}, never "
    "from the workflow."
)

ENCODE_TIP = (
    "With a server: where pictures are encoded and pruned before they are sent. Empty: by the server. here: on this "
    "machine, by the vision tower of the server's checkpoint, on the device above. An address, or several separated by "
    "commas: by encoders of `tops encode-server`, which may be where servers may be. The server has to be vLLM with "
    "--enable-mm-embeds."
)


class LoadModel:
    """Name a checkpoint, here or behind a server."""

    NODE_ID = "TOPSLoadModel"
    TITLE = "TOPS Load Model (VLM)"
    CATEGORY = "TOPS"
    DESCRIPTION = (
        "A vision-language model: the embedded mini, a checkpoint in models/TOPS or models/LLM, one from the hub, or "
        "one behind a server. "
        "Equal settings share one copy in memory, however many nodes use it."
    )
    SEARCH_ALIASES = [
        "vlm", "llava", "qwen-vl", "vision language", "multimodal", "image to text", "load vlm", "checkpoint", "vllm",
        "openai",
    ]  # fmt: skip
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model, for every other TOPS node. Its weights load when the first question is asked.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        models = ["mini", *_local_models(), *(model.name for model in curated_models())]
        hub = "A checkpoint of the hub by its id (owner/name), in place of the choice above; empty: the choice above."
        return {
            "required": {
                "model": (models, {"default": "mini", "tooltip": _models_tooltip()}),
                "dtype": widget(FIELDS["dtype"]),
                "device": (DEVICES, {"default": "auto", "tooltip": _device_tooltip()}),
                "quantization": widget(FIELDS["quantization"], unset="none"),
                **advanced({"attention": widget(FIELDS["attention"])}),
            },
            "optional": {
                "hub_id": ("STRING", {"default": "", "placeholder": DEFAULT_MODEL, "tooltip": hub}),
                "server": ("STRING", {"default": "", "placeholder": "http://127.0.0.1:8000", "tooltip": SERVER_TIP}),
                **advanced({name: _pixels(name) for name in ("min_pixels", "max_pixels")}),
                "encode": ("STRING", {"default": "", "placeholder": "here", "tooltip": ENCODE_TIP}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        model: str | None,
        hub_id: str = "",
        server: str | None = "",
        dtype: str | None = "auto",
        device: str | None = "auto",
        quantization: str | None = "none",
        encode: str | None = "",
    ) -> bool | str:
        # Naming `model` also lets values through that this machine's list lacks, if they can be found.
        try:
            if (server or "").strip():
                allowed_server(str(server))
                if (encode or "").strip():
                    check_encode(str(encode))
            elif (encode or "").strip():
                raise InvalidInput("encode is for a model behind a server; name the server, or leave encode empty.")
            else:
                source_of(model, hub_id)
                choices = {"dtype": dtype, "device": device, "quantization": quantization}
                ModelSpec(**settings_from(ModelSpec, {name: value for name, value in choices.items() if value}))
                _check_memory((hub_id or "").strip() or model or "", dtype, device, quantization)
        except (InvalidInput, ModelNotFound) as error:
            return refusal(str(error))
        return True

    def load(
        self,
        model: str,
        dtype: str,
        device: str,
        quantization: str,
        attention: str,
        hub_id: str = "",
        server: str = "",
        min_pixels: int = 0,
        max_pixels: int = 0,
        encode: str = "",
    ) -> tuple[NodeModel]:
        on_device = _comfy_device() if device == "auto" and in_comfyui() else device
        if server.strip():
            return (ServedModel(server, hub_id.strip() or None, encode, on_device),)
        if encode.strip():
            raise InvalidInput("encode is for a model behind a server; name the server, or leave encode empty.")
        options = {"dtype": dtype, "device": device, "quantization": quantization, "attention": attention}
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = settings_from(ModelSpec, options | pixels)
        if on_device != "auto":
            given["device"] = on_device
        spec = ModelSpec(model=source_of(model, hub_id), **given)
        return (model_handle(spec.model_copy(update={"model": _on_this_machine(spec)})),)


def _models_tooltip() -> str:
    lines = [
        "mini is embedded; folders are those of models/TOPS and models/LLM. These are downloaded at the first run:"
    ]
    for model in curated_models():
        lines.append(f"{model.name}: {model.download_gb:.1f} GB, {model.licence}; {model.good_at}")
    if in_comfyui():  # elsewhere the definition is that of no machine
        memory = _memory("auto")
        for words in ("too large here", "fits as 4bit", "fits as 8bit"):
            names = [model.name for model in curated_models() if model.fit(memory) == words]
            lines += [f"On this machine ({memory / 1e9:.0f} GB) {words}: {', '.join(names)}"] if names else []
    return "\n".join(lines)


def _check_memory(name: str, dtype: str | None, device: str | None, quantization: str | None) -> None:
    """Check that a model of the list fits into the memory of its device, before it is downloaded.

    Raises
    ------
    InvalidInput
        If it does not; the sentence names what does.
    """
    model = curated_model(name)
    if model is None or device is None or quantization is None:
        return
    memory, precision = _memory(device), quantization
    if quantization == "none":
        precision = "float32" if dtype == "float32" else "bfloat16"
    weights = 2 * model.memory_gb["bfloat16"] if precision == "float32" else model.memory_gb[precision]
    needed = weights + QUESTION_GB
    if needed * 1e9 <= memory:
        return
    smaller = model.fits_as(memory)
    remedy = f"choose {smaller}, or a smaller model" if smaller else "choose a smaller model"
    raise InvalidInput(
        f"{name} needs about {needed:.1f} GB of memory in {precision}, and this machine has {memory / 1e9:.1f} GB; "
        f"{remedy}."
    )


def _memory(device: str) -> int:
    """Return the bytes of memory of a device of this node's widget."""
    name = device
    if device == "auto":
        name = _comfy_device() if in_comfyui() else "cuda" if torch.cuda.is_available() else "cpu"
    return total_memory(torch.device(name if name != "cuda" or torch.cuda.is_available() else "cpu"))


def _pixels(name: str) -> Widget:
    """Return the widget of a bound of pixels; 0 is unset."""
    field = FIELDS[name]
    return widget(field, step=1000, tooltip=f"{field.description} 0: unset.")


def _device_tooltip() -> str:
    return (FIELDS["device"].description or "") + " Under ComfyUI, auto follows its own choice (--cpu, --cuda-device)."


def _comfy_device() -> str:
    """Return ComfyUI's device under the engine's name."""
    from comfy import model_management

    device = model_management.get_torch_device()
    # --novram keeps no weights on the card between uses, and a whole model is all we can put there.
    no_vram = model_management.vram_state == model_management.VRAMState.NO_VRAM
    return str(device) if device.type in ("cuda", "mps") and not no_vram else "cpu"


def _local_models() -> list[str]:
    """Return the checkpoints in the model folders, as ``TOPS/name``; also one level deeper, as the hub's owner/name.

    A folder inside a checkpoint, such as its CLIP or a part of a diffusion pipeline, is not a checkpoint.
    """
    found = []
    for kind, folders in host().folders.models.items():
        for folder in folders:
            checkpoints = [path.parent for path in folder.glob("*/config.json")]
            parts_of = [*checkpoints, *(path.parent for path in folder.glob("*/model_index.json"))]
            deeper = [path.parent for path in folder.glob("*/*/config.json")]
            checkpoints += [path for path in deeper if path.parent not in parts_of and path.parent.name[0] != "."]
            found += [f"{kind}/{path.relative_to(folder).as_posix()}" for path in checkpoints]
    return sorted(set(found))


def _on_this_machine(spec: ModelSpec) -> str:
    """Return where a model lies, downloaded into ``models/LLM`` if it is not on this machine yet."""
    if spec.model == "mini" or Path(spec.model).is_absolute():
        return spec.model
    from tops_engine.checkpoints import downloaded_checkpoint  # these import torch, transformers and the hub's client
    from tops_engine.downloads import fetch

    if (folder := downloaded_checkpoint(spec.model)) is not None:
        return str(folder)
    running, shown = host(), 0.0

    def show(done: int, total: int, /) -> None:
        nonlocal shown
        stop_if_interrupted(running)
        complete = 0 < total <= done  # always shown: a small model is complete before the next text is due
        if time.monotonic() - shown < TEXT_INTERVAL and not complete:
            return
        shown = time.monotonic()
        if total:
            running.progress(done, total)
        size = f": {done / 1e9:.2f} of {total / 1e9:.2f} GB" if total else " ..."
        running.show_text(f"Downloading {spec.model}{size}")

    return str(fetch(spec, show, next(iter(running.folders.models.get("LLM", ())), None)))


def source_of(model: str | None, hub_id: str | None) -> str:
    """Return the model that the engine loads: ``mini``, a folder below the model folders, or a hub id."""
    name = (hub_id or "").strip() or (model or "").strip()
    if name == "mini" or not name:
        return "mini"
    kind, _, inside = name.partition("/")
    if kind in MODEL_KINDS and inside:
        for folder in host().folders.models.get(kind, []):
            path = (folder / inside).resolve()
            if path.is_relative_to(folder.resolve()) and (path / "config.json").is_file():
                return str(path)
        raise ModelNotFound(
            f"There is no checkpoint {quote(inside)} in models/{kind}; put it there, or choose another."
        )
    if "gguf" in name.lower():
        raise InvalidInput(
            f"{quote(name)} holds GGUF weights, which the engine does not read; name the safetensors checkpoint that "
            "they were made from, and choose quantization 4bit."
        )
    if (found := _folder_of(name)) is not None:
        return str(found)
    if name.count("/") > 1 or "\\" in name or name.startswith((".", "~", "/")) or Path(name).is_absolute():
        raise InvalidInput(
            f"{quote(name)} is neither a hub id (owner/name) nor in the model folders; put the checkpoint into "
            "models/TOPS."
        )
    return name


def _folder_of(hub_id: str) -> Path | None:
    """Return the folder of a hub's checkpoint in the model folders: ``owner/name``, or ``name`` alone."""
    owner, _, name = hub_id.partition("/")
    if not name or ".." in hub_id or "/" in name or "\\" in hub_id:
        return None
    folders = [folder for kind in MODEL_KINDS for folder in host().folders.models.get(kind, [])]
    places = [folder / place for folder in folders for place in (f"{owner}/{name}", name)]
    return next((place for place in places if (place / "config.json").is_file()), None)
