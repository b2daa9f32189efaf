"""Clusters around density peaks (DPC-kNN), which several methods merge tokens by."""

import torch
from torch import Tensor


@torch.no_grad()
def density_peaks(features: Tensor, num_clusters: int, num_neighbours: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens around those that are dense and far from denser ones.

    The density of a token falls with the mean squared distance of its nearest neighbours, itself included. The centres
    are the tokens with the largest product of density and distance to the nearest denser token. Of equally dense tokens
    the first counts as denser, where published code adds random noise.

    Parameters
    ----------
    features : float [n, d].
    num_clusters : 1 to n.
    num_neighbours : for the density; at most n are used.

    Returns
    -------
    int64 [num_clusters], the centres, ascending; and int64 [n], to which of them each token belongs.
    """
    num_tokens, size = features.shape
    # Without their mean: otherwise the squares of the common part would hide the differences.
    centred = features.float() - features.float().mean(dim=0)
    distances = (torch.cdist(centred, centred) / size**0.5).fill_diagonal_(0)
    nearest = distances.topk(min(num_neighbours, num_tokens), largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    rank = torch.empty(num_tokens, dtype=torch.int64, device=features.device)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(num_tokens, device=features.device)
    separation = distances.masked_fill(rank[None] >= rank[:, None], float("inf")).amin(dim=1)
    separation = torch.where(rank == 0, distances.max(), separation)
    centres = (density * separation).argsort(descending=True, stable=True)[:num_clusters].sort().values
    belongs = distances[:, centres].argmin(dim=1)
    belongs[centres] = torch.arange(num_clusters, device=features.device)
    return centres, belongs


def cluster_means(features: Tensor, belongs: Tensor, num_clusters: int) -> Tensor:
    """Return the mean of each cluster: [n, d] and int64 [n] -> [num_clusters, d]; clusters are not empty."""
    members = torch.nn.functional.one_hot(belongs, num_clusters).to(features.dtype)
    return members.T @ features / members.sum(dim=0)[:, None]
