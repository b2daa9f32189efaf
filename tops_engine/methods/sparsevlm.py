"""SparseVLM (arXiv 2410.04417): in steps, by the attention of words about the picture; part of the rest is merged."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from tops_engine import selection
from tops_engine.budget import Preset, Stage
from tops_engine.device.lazy import Tensor, torch
from tops_engine.methods.base import Selection
from tops_engine.methods.stepwise import Stepwise
from tops_engine.methods.tokens import LayerTokens

#: The share of the dropped tokens of a step that is merged, and how many of them become one token.
RECYCLED_SHARE, TOKENS_A_CLUSTER = 0.3, 10

# Per nominal budget of version 1.5 of the official code: kept tokens plus clusters behind layers 2, 6 and 15.
PUBLISHED = {
    192: (300 + 9, 200 + 4, 110 + 3),
    128: (303 + 9, 110 + 7, 36 + 3),
    96: (238 + 11, 48 + 7, 26 + 1),
    64: (66 + 16, 30 + 2, 17 + 1),
}

# Per nominal budget of version 1.0, which prunes behind layer 19 as well: scale and bias of the rank.
ADAPTIVE = {192: (13.5, 0), 128: (9.0, 6), 64: (0.8, 0)}


class SparseVLM(Stepwise):
    """Keep, in three steps, the tokens with the most attention from words about the picture, and clusters of the rest.

    The words about the picture are the text tokens after the image that match its tokens above average (softmax over
    the text of their dot products). Their attention is that of the layer before. The best of the dropped tokens are
    merged into clusters. As in version 1.5 of the official code the count of a step is fixed, so that a budget is met;
    it includes the clusters of the step. With ``rank_scale`` the method is the adaptive version 1.0: it keeps the rank
    of the attention times the scale, plus ``rank_bias`` and the clusters, and the budget is the upper limit.

    As in the code, a cluster is the mean of its tokens. Here it takes the place of its centre; in the code the clusters
    follow the kept tokens. The code breaks ties of density by random noise; here the lower index wins.

    The official budgets (presets ``sparsevlm/192`` ..., the adaptive ones ``sparsevlm/192-adaptive`` ...) count the
    saving of a step from the layer before it. The average over what the layers really see is higher; an answer reports
    that.
    """

    name = "sparsevlm"
    source = "arXiv 2410.04417"
    waits_for_device = True
    default_layers = (3, 7, 16)
    presets: ClassVar[Mapping[str, Preset]] = {
        f"sparsevlm/{budget}": Preset(tuple(map(Stage, (3, 7, 16), counts)), 32, 576, {"layers": (3, 7, 16)})
        for budget, counts in PUBLISHED.items()
    } | {
        f"sparsevlm/{budget}-adaptive": Preset(
            tuple(Stage(layer, 576) for layer in (3, 7, 16, 20)),
            32,
            576,
            {"layers": (3, 7, 16, 20), "rank_scale": scale, "rank_bias": bias},
            proportional=True,
        )
        for budget, (scale, bias) in ADAPTIVE.items()
    }

    rank_scale: float | None = Field(
        default=None,
        gt=0,
        description="Keep the rank of the attention times this number of tokens, instead of a fixed number.",
    )
    rank_bias: int = Field(default=0, ge=0, description="With rank_scale: keep this many tokens more.")

    @property
    def adaptive(self) -> bool:
        return self.rank_scale is not None

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return [self._keep_and_recycle(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Distances of all pairs of recycled tokens, and the means of their clusters. The rank is not counted.
        clusters = num_clusters(num_tokens, num_kept)
        recycled = num_recycled(num_tokens - num_kept + clusters)
        return 2 * recycled * (recycled + clusters) * feature_size if clusters else 0

    def _keep_and_recycle(self, image: LayerTokens, count: int) -> Selection:
        attention = image.attention("text", layer="previous")[text_raters(image.text_similarity())]
        scores = attention.mean(dim=0)
        clusters = num_clusters(len(scores), count)
        if self.rank_scale is not None:
            # On the CPU: not every device has the decomposition, and the host needs the number.
            by_rank = int(self.rank_scale * int(torch.linalg.matrix_rank(attention.cpu())) + self.rank_bias)
            num_kept = min(by_rank, len(scores) - 1)
            if num_kept + clusters_beside(num_kept, len(scores)) <= count:
                clusters = clusters_beside(num_kept, len(scores))
                count = num_kept + clusters
        if clusters == 0:
            return Selection.highest(scores, count)
        order = scores.argsort(descending=True, stable=True)
        kept, dropped = order[: count - clusters], order[count - clusters :]
        recycled = dropped[: num_recycled(len(dropped))].sort().values
        centres, merged = cluster(image.hidden_states[recycled].float(), clusters)
        # In the order of choice the clusters follow the kept tokens.
        chosen = torch.cat([kept, recycled[centres]])
        features = torch.cat([image.hidden_states[kept], merged.to(image.hidden_states.dtype)])
        places = chosen.argsort()
        return Selection(chosen[places], chosen, features[places])


def text_raters(similarity: Tensor) -> Tensor:
    """Return which text tokens rate: bool [t], from dot products with the image's projected tokens, float32 [N, t]."""
    relevance = similarity.softmax(dim=1).mean(dim=0)
    rates = relevance > relevance.mean()
    # When all match alike, none is above the mean and all of them rate.
    return rates | ~rates.any()


def num_recycled(num_dropped: int) -> int:
    """Return how many of the dropped tokens are merged."""
    return int(RECYCLED_SHARE * num_dropped) + 1


def clusters_beside(num_kept: int, num_tokens: int) -> int:
    """Return how many clusters the published rule makes of the tokens that are not kept."""
    return num_recycled(num_tokens - num_kept) // TOKENS_A_CLUSTER + 1


def num_clusters(num_tokens: int, count: int) -> int:
    """Return how many of ``count`` remaining tokens are clusters.

    The published rule gives the number of clusters for a number of kept tokens; this solves it for their sum. At most
    half of the budget are clusters, since the rule would make more of them than a small budget has tokens.
    """
    num_kept = count
    while num_kept + min(clusters_beside(num_kept, num_tokens), count // 2) > count:
        num_kept -= 1
    return count - num_kept


def cluster(features: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens around density peaks, with as many nearest neighbours for the density as there are clusters.

    Parameters
    ----------
    features : float32 [r, d]

    Returns
    -------
    int64 [c] centres, and float32 [c, d] means of their clusters, in the same order.
    """
    centres, belongs = selection.density_peaks(features, num_clusters, num_clusters)
    return centres, selection.cluster_means(features, belongs, num_clusters)
