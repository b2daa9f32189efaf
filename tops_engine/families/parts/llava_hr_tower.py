"""LLaVA-HR's vision tower: CLIP on a small picture, helped by ConvNeXt on a large one (arXiv 2403.03003).

Written on the CLIP and ConvNeXt modules of transformers; the names of the parts in between are those of the published
weights.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling


class MixedResolutionConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers types it as Any
    """Sizes of the tower.

    Parameters
    ----------
    fast_config, slow_config : of CLIP, which makes the tokens, and of ConvNeXt.
    image_size : side of the square picture that ConvNeXt sees.
    adapters : whether ConvNeXt's features also go into CLIP between its layers, as in all published checkpoints.
    slow_norm_eps : of ConvNeXt's norms, which transformers fixes.
    """

    model_type = "llava_hr_vision"
    #: Those that attend; transformers hands its choice of kernel on to them.
    sub_configs: ClassVar[dict[str, Any]] = {"fast_config": CLIPVisionConfig}

    def __init__(
        self,
        fast_config: Any = None,
        slow_config: Any = None,
        image_size: int = 1024,
        adapters: bool = True,
        slow_norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        self.fast_config = fast_config or CLIPVisionConfig()
        self.slow_config = slow_config or ConvNextConfig()
        self.image_size = image_size
        self.adapters = adapters
        self.slow_norm_eps = slow_norm_eps
        self.hidden_size = self.fast_config.hidden_size
        super().__init__(**kwargs)

    @property
    def side(self) -> int:
        """Tokens along a side of the picture."""
        return self.fast_image_size // self.fast_config.patch_size

    @property
    def fast_image_size(self) -> int:
        """Side of CLIP's picture: a patch of it for each place of ConvNeXt's last map, and never less than its own."""
        return max(int(self.image_size / 32 * self.fast_config.patch_size), self.fast_config.image_size)

    @property
    def patch_size(self) -> int:
        """Side of what a token shows of ConvNeXt's picture."""
        return self.image_size // self.side


class Adapter(nn.Module):
    """Adds ConvNeXt's features to CLIP's between two of its layers, weighted by a gate (one number a picture)."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.slow_conv = nn.Conv2d(slow, slow, 1)
        self.slow_proj = nn.Conv2d(slow, fast, 1)
        self.fast_conv = nn.Conv2d(fast, fast, 7, padding=3, groups=fast)
        self.fast_proj = nn.Conv2d(fast, fast, 1)
        self.gate = nn.Sequential(nn.Linear(2 * fast, fast // 2), nn.GELU(), nn.Linear(fast // 2, 1))

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        """CLIP's rows [n, tokens, c] and ConvNeXt's map [n, c', h, w] -> rows."""
        side = math.isqrt(fast.shape[1])
        slow = rows_of(resized(self.slow_proj(F.gelu(self.slow_conv(slow))), side))
        grid = fast.transpose(1, 2).reshape(len(fast), -1, side, side)
        fast = rows_of(grid + self.fast_proj(F.gelu(self.fast_conv(grid))))
        gate = self.gate(torch.cat([fast, slow], dim=-1).mean(dim=1)).tanh()
        return fast + slow * gate[:, None]


class Fusion(nn.Module):
    """The sum of both towers' last features, each projected."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.fast_proj = nn.Linear(fast, fast)
        self.slow_proj = nn.Linear(slow, fast)

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        """CLIP's rows [n, tokens, c] and ConvNeXt's map [n, c', h, w] -> rows."""
        side = math.isqrt(fast.shape[1])
        return self.fast_proj(fast) + self.slow_proj(rows_of(resized(slow, side)))


class MixedResolutionTower(PreTrainedModel):  # type: ignore[misc]  # transformers types it as Any
    """Pictures [n, 3, size, size] -> one hidden state, [n, tokens, c], as ``LlavaModel`` reads a tower's features.

    CLIP runs without its [CLS]. Its layers are four groups; an adapter follows each of the first three.
    """

    config_class = MixedResolutionConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"\.head\.", r"position_ids$", r"inv_freq$"]

    def __init__(self, config: MixedResolutionConfig) -> None:
        super().__init__(config)
        fast, slow = config.fast_config.hidden_size, config.slow_config.hidden_sizes[-1]
        self.fast = CLIPVisionModel(config.fast_config)
        self.slow = ConvNextModel(config.slow_config)
        self.slow.layernorm = nn.Identity()
        for module in self.slow.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.slow_norm_eps
        self.align_stages_latent = nn.ModuleList(Adapter(fast, slow) for _ in range(3 if config.adapters else 0))
        self.align_stages = nn.ModuleList([Fusion(fast, slow)])
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        slow = self.slow.encoder(self.slow.embeddings(pixel_values)).last_hidden_state
        fast = self.fast.pre_layrnorm(self._embed(pixel_values))
        layers = self.fast.encoder.layers
        group = len(layers) // 4
        for index, layer in enumerate(layers, start=1):
            fast = layer(fast, attention_mask=None)
            if index % group == 0 and index // group <= len(self.align_stages_latent):
                fast = self.align_stages_latent[index // group - 1](fast, slow)
        features = self.align_stages[0](fast, slow)
        return BaseModelOutputWithPooling(last_hidden_state=features, hidden_states=(features,))

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """CLIP's patches of the picture made smaller, with its position table stretched over them."""
        embeddings, config = self.fast.embeddings, self.config
        small = resized(pixel_values, config.fast_image_size)
        patches = rows_of(embeddings.patch_embedding(small))
        table = embeddings.position_embedding.weight[1:]
        if len(table) != config.side**2:
            grid = table.float().T.reshape(1, -1, *(math.isqrt(len(table)),) * 2)
            stretched = F.interpolate(grid, size=(config.side,) * 2, mode="bicubic", antialias=True)
            table = rows_of(stretched)[0].to(table.dtype)
        return patches + table


def rows_of(grid: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, h * w, c]."""
    return grid.flatten(2).transpose(1, 2)


def resized(grid: Tensor, side: int) -> Tensor:
    """[n, c, h, h] -> [n, c, side, side], interpolated from corner to corner."""
    return F.interpolate(grid.float(), size=(side, side), mode="bilinear", align_corners=True).to(grid.dtype)


AutoConfig.register(MixedResolutionConfig.model_type, MixedResolutionConfig)
AutoModel.register(MixedResolutionConfig, MixedResolutionTower)
