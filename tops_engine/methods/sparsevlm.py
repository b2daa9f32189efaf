"""SparseVLM (arXiv 2410.04417): in steps, by the attention of the words about the picture; the rest is merged."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tops_engine.budget import Preset, Stage
from tops_engine.lazy import Tensor, torch
from tops_engine.methods.base import LayerTokens, Selection
from tops_engine.methods.pyramiddrop import PrunesInSteps

#: Of the tokens that a step drops, the share that is merged, and how many of them make one token.
RECYCLED_SHARE, TOKENS_A_CLUSTER = 0.3, 10

# Per nominal budget of version 1.5 of the official code: kept tokens plus clusters behind layers 2, 6 and 15.
PUBLISHED = {
    192: (300 + 9, 200 + 4, 110 + 3),
    128: (303 + 9, 110 + 7, 36 + 3),
    96: (238 + 11, 48 + 7, 26 + 1),
    64: (66 + 16, 30 + 2, 17 + 1),
}


class SparseVLM(PrunesInSteps):
    """Keeps what the text raters attend to most in the layer before, and merges the best of the rest into clusters.

    Raters are the text tokens after the image that match its tokens above average (softmax over the text of their dot
    products). The fixed budgets of version 1.5 of the official code, not the adaptive ones of the paper, so that a
    budget is met; a step's count includes its clusters. As in the code a cluster is the mean of its tokens; here it
    takes the place of its centre, there the clusters follow the kept tokens. The code breaks ties of density by random
    noise; here the lower index wins.

    The official budgets (presets ``sparsevlm/192`` ...) count a step's saving for the layer that it follows; the
    average of what layers really see is higher, and that is what an answer reports.
    """

    name = "sparsevlm"
    source = "arXiv 2410.04417"
    default_layers = (3, 7, 16)
    presets: ClassVar[Mapping[str, Preset]] = {
        f"sparsevlm/{budget}": Preset(tuple(map(Stage, (3, 7, 16), counts)), 32, 576, {"layers": (3, 7, 16)})
        for budget, counts in PUBLISHED.items()
    }

    def select_at_layer(self, images: Sequence[LayerTokens], counts: Sequence[int]) -> list[Selection]:
        return [_keep_and_recycle(image, count) for image, count in zip(images, counts, strict=True)]

    def selection_flops(self, num_tokens: int, num_kept: int, feature_size: int) -> int:
        # Distances of all pairs of recycled tokens, and the means of their clusters.
        clusters = num_clusters(num_tokens, num_kept)
        recycled = num_recycled(num_tokens - num_kept + clusters)
        return 2 * recycled * (recycled + clusters) * feature_size if clusters else 0


def _keep_and_recycle(image: LayerTokens, count: int) -> Selection:
    rates = text_raters(image.text_similarity())
    scores = image.attention("text", layer="previous")[rates].mean(dim=0)
    clusters = num_clusters(len(scores), count)
    if clusters == 0:
        return Selection.highest(scores, count)
    order = scores.argsort(descending=True, stable=True)
    kept, dropped = order[: count - clusters], order[count - clusters :]
    recycled = dropped[: num_recycled(len(dropped))].sort().values
    centres, merged = cluster(image.hidden_states[recycled].float(), clusters)
    # A cluster competes no more: in the order of choice it follows what was kept.
    chosen = torch.cat([kept, recycled[centres]])
    features = torch.cat([image.hidden_states[kept], merged.to(image.hidden_states.dtype)])
    places = chosen.argsort()
    return Selection(chosen[places], chosen, features[places])


def text_raters(similarity: Tensor) -> Tensor:
    """Which text tokens rate: bool [t], from their dot products with the image's projected tokens, float32 [N, t]."""
    relevance = similarity.softmax(dim=1).mean(dim=0)
    rates = relevance > relevance.mean()
    # When all match alike, none is above the mean and all of them rate.
    return rates | ~rates.any()


def num_recycled(num_dropped: int) -> int:
    """How many of the dropped tokens are merged."""
    return int(RECYCLED_SHARE * num_dropped) + 1


def num_clusters(num_tokens: int, count: int) -> int:
    """How many of ``count`` remaining tokens are clusters, so that these fit to what the others leave.

    The published rule gives the clusters for a number of tokens kept beside them; this solves it for the sum. No more
    than half of the budget: the rule would merge into more tokens than a small budget has.
    """

    def clusters_beside(kept: int) -> int:
        return min(num_recycled(num_tokens - kept) // TOKENS_A_CLUSTER + 1, count // 2)

    kept = count
    while kept + clusters_beside(kept) > count:
        kept -= 1
    return count - kept


def cluster(features: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Clusters around density peaks, with as many nearest neighbours for the density as there are clusters.

    Parameters
    ----------
    features : float32 [r, d]

    Returns
    -------
    int64 [c] centres, and float32 [c, d] means of their clusters, in the same order.
    """
    num_tokens, size = features.shape
    # Around their mean, lest the squares of what all have in common drown the differences.
    centred = features - features.mean(dim=0)
    distances = (torch.cdist(centred, centred) / size**0.5).fill_diagonal_(0)
    nearest = distances.topk(num_clusters, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    # Ranks, so that of equally dense tokens the first counts as the denser one.
    rank = torch.empty(num_tokens, dtype=torch.int64, device=features.device)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(num_tokens, device=features.device)
    denser = rank[None] < rank[:, None]
    separation = distances.masked_fill(~denser, float("inf")).amin(dim=1)
    separation = torch.where(rank == 0, distances.max(), separation)
    centres = Selection.highest(density * separation, num_clusters).indices
    belongs = distances[:, centres].argmin(dim=1)
    belongs[centres] = torch.arange(num_clusters, device=features.device)
    members = torch.nn.functional.one_hot(belongs, num_clusters).to(features.dtype)
    return centres, members.T @ features / members.sum(dim=0)[:, None]
