"""Test that checkpoints with the published names and shapes load whole, at full size on the meta device."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.published_layouts import FILES, PublishedLayout
from tops_engine.dependencies import unsupported_version
from tops_engine.families import family_for

#: Other sizes of a model whose layout has the same names, those with a matrix for each expert, and those whose names
#: transformers converts by the same rules as another's (LLaVA's, Qwen2.5-VL's).
REPEATED = {
    "aya_vision",
    "gemma4_31b",
    "glm4v_moe",
    "internvl_qwen3_moe",
    "internvl_gpt_oss",
    "llava_next",
    "llava_onevision",
    "minicpmv4_7",
    "paligemma2",
    "qwen2_vl",
}
PARAMETERS = [
    pytest.param(file, marks=pytest.mark.full if file.stem in REPEATED else (), id=file.stem) for file in FILES
]


@pytest.mark.parametrize("file", PARAMETERS)
def test_a_checkpoint_with_the_published_names_and_shapes_loads_whole(file: Path, tmp_path: Path) -> None:
    layout = PublishedLayout.read(file)
    family = family_for(layout.config)
    assert family is not None
    if family.oldest_transformers and unsupported_version(f"transformers>={family.oldest_transformers}"):
        pytest.skip(f"needs transformers {family.oldest_transformers}")
    (tmp_path / "config.json").write_text(json.dumps(layout.config))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model_class = type(AutoModelForImageTextToText.from_config(config))
    # Weights of another shape are an error of from_pretrained.
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=layout.weights(), device_map={"": "meta"}, output_loading_info=True
    )
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert set(layout.checkpoints) & set(family.checkpoints[config.model_type])
    text_model = getattr(model.model, "language_model", None) or model.model.text_model
    decoder = family.decoder_class(text_model, model.lm_head, family.position_axes)
    assert decoder.num_layers == config.get_text_config().num_hidden_layers
