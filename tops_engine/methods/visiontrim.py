"""VisionTrim (arXiv 2601.22674): attended patches that fit their surroundings, and groups by the words asked."""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import F, Tensor, torch
from tops_engine.methods.base import Clip, Selection
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import ClipEmbeddings, VisualTokens

#: How often the other patches are added to the groups, as in the official code.
ROUNDS = 3


class VisionTrim(PerTile):
    """Keep attended patches that fit their surroundings, and groups of the others by the words of the question.

    The score of dominant patches is the global and local view of the paper as the official code computes it: the
    attention of [CLS], and the affinity of a patch to the 3 x 3 around it by feature and place. Each is scaled by a
    softmax and weighted by the variance of the other. The code then replaces this score with the mean of the attention
    of [CLS] and that of the patches, which is not done here. As in the code, places outside the picture count as
    affinity 0, so that patches at the border score more.

    A quarter of the budget goes to groups (16 of 64 by the code's defaults). They begin with the patches that are most
    similar to the words in CLIP's space. Three times each other patch is added to the group that is most similar to it
    by way of the words, as in the code; each time a group gains the mean of its patches. Words are the tokens of the
    question as CLIP reads them, at most 77.

    Left out is the paper's part between the layers of the language model. Its formulas could not be had; in the code it
    is commented out, and ranks by attention that the causal mask makes zero. ``visiontrim+fastv`` prunes there by
    another method.
    """

    name = "visiontrim"
    source = "arXiv 2601.22674"
    reads_question = True
    waits_for_device = True
    signals = ("tiles", "vision_attention", "encoder_features")

    clip: Clip = None
    complement: float = Field(default=0.25, ge=0, le=1, description="Share of the budget for groups by the question.")

    def scores(self, image: VisualTokens) -> Tensor:
        return image.vision_attention()

    def select_visual(self, images: Sequence[VisualTokens], counts: Sequence[int]) -> list[Selection]:
        return super().select_visual([self._with_words(image) for image in images], counts)

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        features = image.encoder_features()[tokens].float()
        affinity = selection.local_affinity(features, image.layout.boxes.to(tokens.device)[tokens])
        dominant = _weighted(scores[tokens].softmax(dim=0), affinity.softmax(dim=0).softmax(dim=0))
        num_groups = int(self.complement * num_keep)
        kept = selection.top_tokens(dominant, num_keep - num_groups)
        if not num_groups:
            return TileChoice(tokens[kept], tokens[:0])
        rest = selection.others(kept, len(tokens))
        embedded = image.clip_embeddings(self.clip)
        places, groups = _grouped(features[rest], embedded, num_groups)
        return TileChoice(tokens[kept], tokens[rest[places]], groups)

    def _with_words(self, image: VisualTokens) -> VisualTokens:
        """Return a picture whose tiles share one reading of the question."""
        embedded = image.clip_embeddings(self.clip)
        words = embedded.words()
        read = embedded._replace(words=lambda: words)
        return replace(image, clip_embeddings=lambda _: read)

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # CLIP's projection of the patches in each round, and the projector's two layers for the groups. The widths are
        # those of CLIP ViT-L, as for TRIM. The text tower is not counted.
        patch_width, clip_width = 1024, 768
        groups = int(self.complement * num_kept)
        return 2 * ROUNDS * num_tokens * patch_width * clip_width + 2 * groups * feature_size * (
            patch_width + feature_size
        )


def _weighted(one: Tensor, other: Tensor) -> Tensor:
    """Add two scores, each with the share of the other in the sum of their variances as its weight."""
    first, second = one.var(), other.var()
    least = torch.finfo(torch.float32).tiny
    return (second * one + first * other) / (first + second).clamp_min(least)


def _grouped(features: Tensor, embedded: ClipEmbeddings, count: int) -> tuple[Tensor, Tensor]:
    """Return the patches with which groups begin, int64 [count] ascending, and the features of the groups."""
    words = F.normalize(embedded.words(), dim=-1)

    def similarity(values: Tensor) -> Tensor:
        return F.normalize(embedded.project(values), dim=-1) @ words.T

    places = selection.top_tokens(similarity(features).mean(dim=1), count).sort().values
    groups, joining = features[places], features[selection.others(places, len(features))]
    if not len(joining):
        return places, groups
    to_words = similarity(joining)
    for _ in range(ROUNDS):
        nearest = (to_words @ similarity(groups).T).argmax(dim=1)
        member = F.one_hot(nearest, count).to(features.dtype)
        groups = groups + member.T @ joining / member.sum(dim=0).clamp_min(1)[:, None]
    return places, groups
