"""CDPruner (arXiv 2506.10967): patches that CLIP relates to the question and that differ from each other."""

from typing import Literal

from pydantic import Field

from tops_engine import selection
from tops_engine.device.lazy import F, Tensor, torch
from tops_engine.methods.base import Clip
from tops_engine.methods.per_tile import PerTile, TileChoice
from tops_engine.methods.tokens import VisualTokens


class CDPruner(PerTile):
    """Keep patches that CLIP relates to the question and that differ from each other (a determinantal point process).

    The kernel of the process is the cosine similarity of projected tokens, weighted by their relevance to the question.
    Relevance is the *negative* cosine of patch and question in CLIP's space, scaled to [0, 1] over the picture: CLIP's
    patches are least similar to a text where they show what the text names. For models whose vision tower is not CLIP's
    the paper compares in the language model's own space: ``text_space="llm"`` takes the cosine of projected tokens and
    the mean of the question's embeddings, not negated.

    The question is the whole last message. A question longer than CLIP's 77 tokens is cut. The official code averages
    over pieces instead, of which only the first begins and only the last ends as CLIP expects.
    """

    name = "cdpruner"
    source = "arXiv 2506.10967"
    reads_question = True
    signals = ("tiles", "encoder_features")

    clip: Clip = None
    text_space: Literal["clip", "llm"] = Field(
        default="clip",
        description="The space in which question and patches are compared: CLIP's or the language model's.",
    )

    def scores(self, image: VisualTokens) -> Tensor:
        if self.text_space == "llm":
            question = image.question_embeddings().float().mean(dim=0)
            relevance = F.cosine_similarity(image.features.float(), question, dim=-1)
        else:
            embedded = image.clip_embeddings(self.clip)
            relevance = -F.cosine_similarity(embedded.patches, embedded.question, dim=-1)
        patches = relevance[image.tiles() > 0]
        low, high = patches.min(), patches.max()
        return torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)

    def select_tile(self, image: VisualTokens, scores: Tensor, tokens: Tensor, num_keep: int) -> TileChoice:
        return TileChoice(tokens[selection.dpp_select(image.features[tokens], scores[tokens], num_keep)], tokens[:0])

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # The similarity of all pairs; then each step updates a row with all earlier rows. Without CLIP's text tower.
        return 2 * num_tokens * num_tokens * feature_size + num_tokens * num_kept * num_kept
