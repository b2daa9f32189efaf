"""TOPS Calibrate."""

from typing import Any

from torch import Tensor

from tops_engine.conversation.messages import user_message
from tops_engine.errors import TopsError
from tops_engine.settings import Pruning

from .comfyui_host import host, refusal, stop_if_interrupted
from .models import NodeModel
from .pictures import to_pictures
from .pruning import pruning_file
from .sockets import MODEL, PRUNING, expect_local_model


class Calibrate:
    """Fit FitPrune to a model on your own pictures."""

    NODE_ID = "TOPSCalibrate"
    TITLE = "TOPS Calibrate (fit pruning to a model)"
    CATEGORY = "TOPS"
    DESCRIPTION = "Fits FitPrune to a model on your own pictures, once: how many visual tokens each layer needs."
    SEARCH_ALIASES = ["fitprune", "fit", "tune", "recipe"]
    RETURN_TYPES = (PRUNING, "STRING")
    RETURN_NAMES = ("pruning", "report")
    OUTPUT_TOOLTIPS = (
        "The fitted recipe, for the pruning input of every TOPS node that asks this model.",
        "The share of the visual tokens that each layer sees, and how far attention moves.",
    )
    FUNCTION = "calibrate"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        keep = {"default": 0.3, "min": 0.01, "max": 1.0, "step": 0.01, "round": 0.001}
        return {
            "required": {
                "model": (MODEL, {"tooltip": "From TOPS Load Model."}),
                "images": ("IMAGE", {"tooltip": "Pictures like those to come; a few dozen, as a batch or a list."}),
                "prompt": (
                    "STRING",
                    {"default": "Describe this picture.", "multiline": True, "tooltip": "Asked about every picture."},
                ),
                "keep": ("FLOAT", keep | {"tooltip": "Fraction of the visual tokens to keep, over all layers."}),
                "name": (
                    "STRING",
                    {"default": "calibrated", "tooltip": "The recipe is saved as output/tops_recipes/<name>.json."},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, name: list[str] | str | None) -> bool | str:
        try:
            pruning_file((name[0] if isinstance(name, list) else name) or "recipe")
        except TopsError as error:
            return refusal(str(error))
        return True

    def calibrate(
        self, model: list[NodeModel], images: list[Tensor], prompt: list[str], keep: list[float], name: list[str]
    ) -> dict[str, Any]:
        from tops_engine.calibration import fit_recipe

        pictures = [picture for image in images for picture in to_pictures(image, "images")]
        running = host()

        def progress(done: int, total: int, /) -> None:
            stop_if_interrupted(running)
            running.progress(done, total)

        engine = expect_local_model(model[0], "TOPS Calibrate").ready(1)
        questions = [[user_message(prompt[0], picture)] for picture in pictures]
        recipe = fit_recipe(engine, questions, float(keep[0]), progress)
        path = pruning_file(name[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
        shares = " ".join(f"{share:.2f}" for share in recipe.remaining)
        report = (
            f"saved {path.name}: {100 * recipe.keep:g} % of the visual tokens, layer by layer {shares}; "
            f"attention moves by {100 * recipe.divergence:.1f} % on {recipe.num_questions} pictures"
        )
        return {"ui": {"text": [report]}, "result": (Pruning(recipe=recipe.model_dump(mode="json")), report)}
