"""Find the ComfyUI pack (nodes, node help, workflows), and load its nodes without ComfyUI."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tops_engine.errors import MissingDependency

MODULE = "tops_comfyui_pack"


def pack_folder() -> Path:
    """Return the folder of the pack, as it belongs in ComfyUI's ``custom_nodes``.

    It is inside an installed wheel, or the root of a checkout.

    Raises
    ------
    MissingDependency
        If neither exists.
    """
    # An installed wheel carries the pack inside tops_engine; in a checkout it is the repository itself.
    beside = Path(__file__).resolve().parents[1]
    for folder in (beside / "tops_engine" / "_pack", beside.parent):
        if (folder / "nodes" / "definitions.json").is_file():
            return folder
    raise MissingDependency("This installation has no ComfyUI nodes; reinstall tops-engine.")


def load_pack() -> ModuleType:
    """Import the pack as ComfyUI does, by its folder, under a name that cannot collide with another ``nodes``."""
    if MODULE not in sys.modules:
        folder = pack_folder()
        spec = importlib.util.spec_from_file_location(
            MODULE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[MODULE] = module
        spec.loader.exec_module(module)
    return sys.modules[MODULE]
