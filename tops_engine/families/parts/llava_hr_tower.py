"""LLaVA-HR's vision tower: CLIP on a small picture with features of ConvNeXt on a large one (arXiv 2403.03003).

CLIP and ConvNeXt are the modules of transformers. The modules between them have the names of the published weights.
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
    fast_config : config of CLIP, which makes the tokens.
    slow_config : config of ConvNeXt.
    image_size : side of the square picture that ConvNeXt sees, in pixels.
    adapters : whether ConvNeXt's features are also added between CLIP's layers, as in all published checkpoints.
    slow_norm_eps : epsilon of ConvNeXt's norms, which transformers fixes.
    """

    model_type = "llava_hr_vision"
    #: The configs of modules with attention. transformers passes the attention implementation on to them.
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
        """Side of the picture that CLIP sees, in pixels.

        It has one patch for each position of ConvNeXt's last map, and is at least as large as in CLIP's config.
        """
        return max(int(self.image_size / 32 * self.fast_config.patch_size), self.fast_config.image_size)

    @property
    def patch_size(self) -> int:
        """Side of the square of ConvNeXt's picture that a token shows, in pixels."""
        return self.image_size // self.side


class Adapter(nn.Module):
    """Add ConvNeXt's features to CLIP's between two layers of CLIP, weighted by a gate (one number a picture)."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.slow_conv = nn.Conv2d(slow, slow, 1)
        self.slow_proj = nn.Conv2d(slow, fast, 1)
        self.fast_conv = nn.Conv2d(fast, fast, 7, padding=3, groups=fast)
        self.fast_proj = nn.Conv2d(fast, fast, 1)
        self.gate = nn.Sequential(nn.Linear(2 * fast, fast // 2), nn.GELU(), nn.Linear(fast // 2, 1))

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        """Adapt CLIP's rows [n, tokens, c] with ConvNeXt's map [n, c', h, w]: [n, tokens, c]."""
        side = math.isqrt(fast.shape[1])
        slow = rows_of(resized(self.slow_proj(F.gelu(self.slow_conv(slow))), side))
        grid = fast.transpose(1, 2).reshape(len(fast), -1, side, side)
        fast = rows_of(grid + self.fast_proj(F.gelu(self.fast_conv(grid))))
        gate = self.gate(torch.cat([fast, slow], dim=-1).mean(dim=1)).tanh()
        return fast + slow * gate[:, None]


class Fusion(nn.Module):
    """Add the last features of both towers, each projected."""

    def __init__(self, fast: int, slow: int) -> None:
        super().__init__()
        self.fast_proj = nn.Linear(fast, fast)
        self.slow_proj = nn.Linear(slow, fast)

    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        """Fuse CLIP's rows [n, tokens, c] and ConvNeXt's map [n, c', h, w]: [n, tokens, c]."""
        side = math.isqrt(fast.shape[1])
        return self.fast_proj(fast) + self.slow_proj(rows_of(resized(slow, side)))


class MixedResolutionTower(PreTrainedModel):  # type: ignore[misc]  # transformers types it as Any
    """Make one hidden state of pictures: [n, 3, size, size] -> [n, tokens, c], as ``LlavaModel`` reads features.

    CLIP runs without [CLS]. Its layers are divided into four groups, and an adapter follows each of the first three.
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
        """Embed the patches of the scaled-down picture, with CLIP's position table interpolated to their grid."""
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
    """Flatten a map to rows: [n, c, h, w] -> [n, h * w, c]."""
    return grid.flatten(2).transpose(1, 2)


def resized(grid: Tensor, side: int) -> Tensor:
    """Interpolate a map with aligned corners: [n, c, h, h] -> [n, c, side, side]."""
    return F.interpolate(grid.float(), size=(side, side), mode="bilinear", align_corners=True).to(grid.dtype)


def extra_flops(config: MixedResolutionConfig) -> int:
    """Return the FLOPs of ConvNeXt, the adapters and the fusion for one picture, which CLIP's do not include."""
    slow_config = config.slow_config
    widths, depths = slow_config.hidden_sizes, slow_config.depths
    area = (config.image_size // slow_config.patch_size) ** 2
    total = 2 * area * widths[0] * slow_config.num_channels * slow_config.patch_size**2
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage > 0:
            area //= 4
            total += 2 * area * width * 4 * widths[stage - 1]
        total += depth * 2 * area * width * (49 + 8 * width)
    fast, slow, tokens = config.fast_config.hidden_size, widths[-1], config.side**2
    adapter = 2 * area * slow * (slow + fast) + 2 * tokens * fast * (49 + fast) + fast * (2 * fast + 1)
    fusion = 2 * tokens * fast * (fast + slow)
    return int(total + (3 * adapter if config.adapters else 0) + fusion)


AutoConfig.register(MixedResolutionConfig.model_type, MixedResolutionConfig)
AutoModel.register(MixedResolutionConfig, MixedResolutionTower)
