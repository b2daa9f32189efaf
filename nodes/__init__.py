"""The ComfyUI nodes of TOPS Engine. Ids, input names, their order and the order of outputs are the pack's public API:

append, never rename, remove or reorder (``definitions.json`` holds what was shipped, and a test compares).
"""

from typing import Any

from .asking import Ask
from .calibrating import Calibrate
from .captioning import CaptionBatch
from .comparison import Compare
from .loading import LoadModel
from .memory import Unload
from .pruning import PruningSettings, Recipe
from .structured import Structured
from .token_map import TokenMapPicture
from .video import VideoAsk

_NODES: dict[str, tuple[type, str]] = {
    "TOPSLoadModel": (LoadModel, "TOPS Load Model"),
    "TOPSPruning": (PruningSettings, "TOPS Pruning"),
    "TOPSRecipe": (Recipe, "TOPS Recipe"),
    "TOPSCalibrate": (Calibrate, "TOPS Calibrate"),
    "TOPSAsk": (Ask, "TOPS Ask"),
    "TOPSCaptionBatch": (CaptionBatch, "TOPS Caption Batch"),
    "TOPSVideoAsk": (VideoAsk, "TOPS Video Ask"),
    "TOPSTokenMap": (TokenMapPicture, "TOPS Token Map"),
    "TOPSCompare": (Compare, "TOPS Compare"),
    "TOPSStructured": (Structured, "TOPS Structured"),
    "TOPSUnload": (Unload, "TOPS Unload"),
}

NODE_CLASS_MAPPINGS: dict[str, Any] = {node_id: node for node_id, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node_id: title for node_id, (_, title) in _NODES.items()}
