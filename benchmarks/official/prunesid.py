"""PruneSID: github.com/ZhengyaoFang/PruneSID, CLIPVisionTower_PruneSID.forward of LLaVA.

Its principal components are replaced by exact ones, since it draws random vectors to approximate them. The token [CLS],
which it always keeps, is not counted.
"""

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.official.comparison import NUM_TOKENS, compare, function_of, square_tokens
from tops_engine.methods import VisualTokens
from tops_engine.methods.prunesid import PruneSID

FILE, CLASS = "prunesid/prunesid_llava/clip_encoder.py", "CLIPVisionTower_PruneSID"


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Return the features of [CLS] and the patches, and the attention of [CLS] of 4 heads."""
    generator = torch.Generator().manual_seed(seed)
    # Features in clusters, so that some tokens are redundant.
    clusters = torch.randn(40, 64, generator=generator)
    features = clusters[torch.randint(40, (NUM_TOKENS + 1,), generator=generator)]
    features = features + 0.7 * torch.randn(NUM_TOKENS + 1, 64, generator=generator)
    return features, torch.randn(4, NUM_TOKENS + 1, generator=generator).softmax(dim=-1)


def exact_components(features: Tensor, min_components: int) -> tuple[Tensor, Tensor]:
    values = torch.sigmoid(features.double()).transpose(2, 1)[:, :, 1:]
    loadings = torch.linalg.svd(values - values.mean(dim=1, keepdim=True)).Vh[:, :min_components].mT.abs().float()
    return loadings, loadings.argmax(dim=-1)


def official(checkout: Path, seed: int, count: int) -> list[int]:
    features, attention = inputs(seed)
    suppress = function_of(checkout, FILE, "batch_similarity_nms")
    names: dict[str, Any] = {"batch_pca": exact_components, "batch_similarity_nms": suppress}
    forward = function_of(checkout, FILE, f"{CLASS}.forward", **names)
    rows = attention[None, :, None].expand(-1, -1, NUM_TOKENS + 1, -1)
    outputs = types.SimpleNamespace(attentions=[rows] * 2, hidden_states=[features[None]] * 2)
    tower = types.SimpleNamespace(
        vision_tower=lambda *_, **__: outputs, device="cpu", dtype=torch.float32, need_token_num=count
    )
    return [token - 1 for token in forward(tower, torch.zeros(1))[1][0].tolist() if token]


def ours(seed: int, count: int) -> list[int]:
    features, attention = inputs(seed)
    image = square_tokens(features[1:], vision_attention=attention[:, 1:].mean(dim=0))
    cls = features[:1].expand(NUM_TOKENS, -1)
    image = VisualTokens(**vars(image) | {"cls_features": lambda: cls, "project": lambda rows: rows})
    (selection,) = PruneSID().select_visual([image], [count])
    assert selection.features is not None
    is_cls = (selection.features == features[0]).all(dim=1)
    kept: list[int] = selection.indices[~is_cls].tolist()
    return kept


if __name__ == "__main__":
    compare(__doc__, official, ours)
