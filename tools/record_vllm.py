"""Write the names of vLLM that vllm_tops touches: python -m tools.record_vllm RELEASE=FOLDER ...

FOLDER holds the unpacked wheel of a release of vLLM. The sources are read, not imported, so no release needs to be
installed. The result is ``integrations/vllm_tops/touched.json``, of which `tools.record_docs` makes a table.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "integrations" / "vllm_tops"
RECORD = PACKAGE / "touched.json"

MODELS = "vllm.model_executor.models"
PROCESSING = "vllm.multimodal.processing:"
RUNNER = "vllm.v1.worker.gpu"

#: What is overridden, called or relied on without an import, and what for. Imported names are added by themselves.
USES = {
    "vllm.plugins:DEFAULT_PLUGINS_GROUP": "entry points by which vLLM finds the plugin",
    f"{MODELS}.registry:_ModelRegistry.register_model": "pruned models take the place of vLLM's",
    f"{MODELS}.config:VerifyAndUpdateConfig.verify_and_update_config": "refusals before the server starts",
    f"{MODELS}.config:VerifyAndUpdateConfig.verify_and_update_model_config": "passed on to vLLM's own entry",
    f"{MODELS}.interfaces:SupportsMultiModal.embed_input_ids": "receives kept tokens from the encoder cache",
    f"{MODELS}.llava:LlavaProcessingInfo.get_num_image_tokens": "placeholders of kept tokens",
    f"{MODELS}.llava:LlavaForConditionalGeneration.embed_multimodal": "selection after the tower",
    f"{MODELS}.llava_next:LlavaNextProcessingInfo.get_image_size_with_most_features": "memory for the largest picture",
    f"{MODELS}.llava_next:LlavaNextForConditionalGeneration._merge_image_patch_embeddings": "order of tokens",
    f"{MODELS}.llava_onevision:LlavaOnevisionForConditionalGeneration._merge_image_patch_embeddings": "order of tokens",
    f"{MODELS}.interns1:InternS1ProcessingInfo.get_num_image_tokens": "placeholders of kept tokens",
    f"{MODELS}.idefics3:Idefics3ProcessingInfo._get_image_feature_grid_size": "how a picture was cut",
    f"{MODELS}.gemma3_mm:Gemma3ProcessingInfo.get_num_crops": "pictures cut into crops are refused",
    f"{MODELS}.mistral3:Mistral3ForConditionalGeneration.embed_multimodal": "selection after the tower",
    f"{MODELS}.qwen2_vl:Qwen2VLProcessingInfo.get_num_image_tokens": "placeholders of kept tokens",
    f"{MODELS}.qwen2_vl:Qwen2VLForConditionalGeneration.get_mrope_input_positions": "positions when pruned",
    f"{MODELS}.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions": "positions when pruned",
    f"{MODELS}.qwen3_vl:Qwen3VLForConditionalGeneration.get_mrope_input_positions": "positions when pruned",
    f"{MODELS}.qwen3_vl:Qwen3VLForConditionalGeneration.embed_input_ids": "coordinates taken off the tokens",
    f"{MODELS}.qwen3_vl:Qwen3VLForConditionalGeneration.get_encoder_cudagraph_config": "no CUDA graph of the tower",
    f"{MODELS}.qwen3_vl:mrope_positions_factor": "table for positions of dropped tokens",
    f"{PROCESSING}BaseMultiModalProcessor.apply": "the request's budget",
    f"{PROCESSING}BaseMultiModalProcessor._get_mm_hashes": "caches know a picture by its pruning",
    f"{PROCESSING}BaseMultiModalProcessor._get_cache_missing_processor_kwargs": "which pictures are new",
    f"{PROCESSING}BaseMultiModalProcessor._apply_hf_processor_main": "budgets and grids for the model",
    f"{PROCESSING}BaseMultiModalProcessor._get_prompt_updates": "placeholders of kept tokens",
    f"{PROCESSING}BaseMultiModalProcessor._get_mm_fields_config": "budgets and grids for the model",
    f"{PROCESSING}PromptUpdate.resolve": "placeholders of one picture",
    "vllm.multimodal.inputs:MultiModalFieldConfig.batched": "budgets and grids for the model",
    "vllm.multimodal.registry:MultiModalRegistry.register_processor": "the pruned models' processors",
    "vllm.config.vllm:VllmConfig.use_v2_model_runner": "which model runner vLLM uses",
    "vllm.config.vllm:VllmConfig.try_verify_and_update_config": "calls the refusals",
    f"{RUNNER}.model_states:resolve_model_state_cls": "asks a model for `get_model_state_cls`",
    f"{RUNNER}.model_states.default:DefaultModelState.prepare_inputs": "positions of kept tokens",
    f"{RUNNER}.model_states.default:DefaultModelState.prepare_inputs_embeds": "runs before `prepare_inputs`",
    f"{RUNNER}.mm.encoder_runner:EncoderRunner.get_inputs_embeds": "passes kept tokens to the model",
    f"{RUNNER}.mm.encoder_runner:EncoderRunner.gather_mm_embeddings": "reads kept tokens from the encoder cache",
    f"{RUNNER}.mm.rope:RopeState.get_positions": "the tensor of positions that CUDA graphs read",
}


def main(arguments: list[str]) -> None:
    releases = dict(argument.split("=", 1) for argument in arguments)
    record = {
        name: {
            "use": USES.get(name, "imported"),
            "signatures": {release: Sources(Path(folder)).signature(name) for release, folder in releases.items()},
        }
        for name in touched()
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def touched() -> list[str]:
    """Return the names, ``module:name`` or ``module:Class.method``, in alphabetical order."""
    return sorted({*USES, *imported()})


def imported() -> Iterator[str]:
    """Return what the modules of vllm_tops import from vLLM."""
    for path in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from (f"{node.module}:{alias.name}" for alias in node.names)


class Sources:
    """The Python sources of one release of vLLM, in a folder that contains the package ``vllm``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, ast.Module | None] = {}

    def signature(self, name: str) -> str | None:
        """Return the arguments of a function, "class" or "value"; None if this release has no such name."""
        module, _, path = name.partition(":")
        first, _, method = path.partition(".")
        found = self._find(module, first)
        if method and found is not None:
            found = self._method(*found, method)
        if found is None:
            return None
        node = found[1]
        if isinstance(node, ast.FunctionDef):
            return f"({', '.join(_arguments(node.args))})"
        return "class" if isinstance(node, ast.ClassDef) else "value"

    def _method(self, module: str, node: ast.stmt, method: str) -> tuple[str, ast.stmt] | None:
        """Find a method in a class or its bases."""
        if not isinstance(node, ast.ClassDef):
            return None
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == method:
                return module, statement
        for base in node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            found = self._find(module, name.id) if isinstance(name, ast.Name) else None
            found = found and self._method(*found, method)
            if found:
                return found
        return None

    def _find(self, module: str, name: str) -> tuple[str, ast.stmt] | None:
        """Find where a name of a module is defined, through imports from other modules of vLLM."""
        tree = self._module(module)
        for node in [] if tree is None else _statements(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return module, node
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return module, node
            if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
                original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                return self._find(self._absolute(module, node), original)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                found = self._find(self._absolute(module, node), name)
                if found:
                    return found
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        kept = parts[: len(parts) - node.level + self._path(module).name.startswith("__init__")]
        return ".".join([*kept, *filter(None, [node.module])])

    def _path(self, module: str) -> Path:
        package = self.folder.joinpath(*module.split("."))
        return package / "__init__.py" if package.is_dir() else package.with_suffix(".py")

    def _module(self, module: str) -> ast.Module | None:
        if module not in self._modules:
            path = self._path(module)
            self._modules[module] = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None
        return self._modules[module]


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Return the statements of a module, also those under ``if TYPE_CHECKING``, definitions first."""
    nested = [inner for node in tree.body if isinstance(node, ast.If | ast.Try) for inner in node.body]
    yield from sorted([*tree.body, *nested], key=lambda node: isinstance(node, ast.ImportFrom))


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    yield from (argument.arg for argument in [*arguments.posonlyargs, *arguments.args])
    if arguments.vararg or arguments.kwonlyargs:
        yield f"*{arguments.vararg.arg if arguments.vararg else ''}"
    yield from (argument.arg for argument in arguments.kwonlyargs)
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}"


if __name__ == "__main__":
    main(sys.argv[1:])
