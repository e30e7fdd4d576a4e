"""`compressed`: a policy carried out on a network, before any training."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait.compression.graph import Forward, Network, prune
from plait.compression.quantisers import quantise, reestimate
from plait.spec.policy import CompressionPolicy


def compressed(
    reference: nn.Module,
    forward: Forward,
    network: Network,
    policy: CompressionPolicy,
    batches: Sequence[Tensor],
) -> nn.Module:
    """A copy of `reference` with channels removed and layers quantised, calibrated on batches of its inputs.

    The first batch sets the steps of activations; all of them make the norms' means and variances anew.
    """
    module = copy.deepcopy(reference)
    prune(module, torch.zeros_like(batches[0][:1]), forward, network, policy)
    quantise(module, network, policy)
    with torch.no_grad():
        module.eval()(batches[0])
    reestimate(module, list(batches))
    return module
