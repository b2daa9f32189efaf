"""The module that ComfyUI loads when this folder is in custom_nodes. It never breaks ComfyUI's start.

The guard below is for pytest, which imports this file as a module without a package.
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_log = logging.getLogger(__name__)

WEB_DIRECTORY = "./web"


def _package_folder(name):
    """Return the folder of a package that the nodes import: in this checkout, or around this folder in a wheel."""
    if _HERE.parent.name == "tops_engine":
        return _HERE.parents[1] / name
    return _HERE / name if name == "tops_engine" else _HERE / "integrations" / name


def _provide(name):
    """Make ``import <name>`` return this folder's copy, whatever is installed, and leave ``sys.path`` unchanged.

    A process holds one copy, because two copies would hold two sets of weights.
    """
    if name in sys.modules:
        return
    folder = _package_folder(name)
    if not folder.is_dir():
        return  # a copied pack: the installed package has to be there
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _placeholders(reason):
    """Nodes that keep their widgets and say what to do, so that workflows open and lose nothing."""

    def node(definition):
        def run(self, **_):
            raise RuntimeError(reason)

        return type(
            definition["name"],
            (),
            {
                "INPUT_TYPES": classmethod(lambda cls: definition["input"]),
                "RETURN_TYPES": tuple(definition["output"]),
                "RETURN_NAMES": tuple(definition["output_name"]),
                "OUTPUT_NODE": definition["output_node"],
                "CATEGORY": "TOPS",
                "DESCRIPTION": reason,
                "FUNCTION": "run",
                "run": run,
            },
        )

    definitions = json.loads((_HERE / "nodes" / "definitions.json").read_text(encoding="utf-8"))
    titles = {node_id: definition["display_name"] for node_id, definition in definitions.items()}
    return {node_id: node(definition) for node_id, definition in definitions.items()}, titles


if __package__:
    try:
        _provide("tops_engine")
        _provide("tops_workflow")
        from tops_engine.dependencies import lacking_for_nodes

        if _lacking := lacking_for_nodes():
            raise ImportError(_lacking)
        from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    except Exception as error:
        _reason = str(error).rstrip(".")
        _remedy = f"TOPS cannot run: {_reason}. Install what it needs: {sys.executable} -m pip install -r "
        _remedy += str(_HERE / "requirements.txt")
        _log.error(_remedy)
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = _placeholders(_remedy)
    else:
        from .nodes.comfyui_host import in_comfyui, register_model_folders, remember_prompts
        from .nodes.samples import offer_samples

        register_model_folders()
        remember_prompts()
        offer_samples()

        from .nodes.v3 import extension, has_v3

        if has_v3():
            # ComfyUI asks for the V3 nodes only where a module has no V1 nodes.
            _v1_nodes, NODE_CLASS_MAPPINGS = NODE_CLASS_MAPPINGS, None

            def comfy_entrypoint():
                return extension(_v1_nodes)
        elif in_comfyui():
            from .nodes.v1 import v1_nodes

            NODE_CLASS_MAPPINGS = v1_nodes(NODE_CLASS_MAPPINGS)

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
