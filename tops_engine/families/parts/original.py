"""Checkpoints in the layout of the original LLaVA code, which consist of config.json, tokenizer and weights."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoTokenizer

from tops_engine.errors import MissingDependency, ModelNotFound, quote

CONVERT = (
    'python -c "import glob, torch, safetensors.torch as s; '
    "s.save_file({k: v.clone() for f in glob.glob('pytorch_model*.bin') "
    "for k, v in torch.load(f, weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
)

#: From the names of language model and projector in the original code to those in transformers' LLaVA models.
LLAVA_KEY_MAPPING = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
}


def checkpoint_folder(source: str, revision: str | None) -> Path:
    """Return the checkpoint's folder, downloaded without its pickled files.

    Raises
    ------
    ModelNotFound
        If it has no safetensors files.
    """
    folder = Path(source)
    if not folder.is_dir():
        patterns = ["*.json", "*.safetensors", "tokenizer.model"]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFound(
            f"The checkpoint {quote(source)} has no safetensors files. Pickled weights (.bin) can carry code and are "
            f"not read. Download the checkpoint and convert it once, in its folder: {CONVERT}"
        )
    return folder


def checkpoint_tokenizer(folder: Path) -> Any:
    """Load the checkpoint's tokenizer.

    Raises
    ------
    MissingDependency
        If there is only a ``tokenizer.model`` and the packages that read it are not installed.
    """
    has_reader = all(find_spec(package) for package in ("sentencepiece", "google"))
    if not has_reader and not (folder / "tokenizer.json").exists():
        raise MissingDependency("The checkpoint's tokenizer.model needs packages: pip install sentencepiece protobuf.")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def text_settings(original: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of an original config that belong to the language model."""
    return {name: value for name, value in original.items() if not name.startswith(("mm_", "model_type", "arch"))}


def load_weights(
    model_class: Any, folder: Path, config: Any, key_mapping: dict[str, str], **options: Any
) -> tuple[Any, list[str]]:
    """Load the weights into a model class of transformers; see ``Family.load_model``.

    Parameters
    ----------
    key_mapping : regular expressions for the names of the published weights, and what replaces them, in order.
    """
    model, info = model_class.from_pretrained(
        folder, config=config, key_mapping=key_mapping, use_safetensors=True, output_loading_info=True, **options
    )
    return model, sorted(info["missing_keys"])


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every weight by its name, read from the headers of the files."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    return shapes


def weight_shape(shapes: dict[str, list[int]], name: str) -> list[int]:
    """Return one of :func:`weight_shapes`.

    Raises
    ------
    ModelNotFound
        If there is no weight of that name.
    """
    if name not in shapes:
        raise ModelNotFound(f"The checkpoint lacks the weight {name}; it is incomplete.")
    return shapes[name]


def count(shapes: dict[str, list[int]], pattern: str) -> int:
    """Return how many different values the group of ``pattern`` has in the names of the weights."""
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})
