"""The server's objective (docs/method.md, section 5), one term in each file.

    loss = HybridLoss(HybridConfig())
    total, parts = loss(embeddings, positives=views, windows=indices, chains=devices)

`total` is differentiable; `parts` are detached numbers for the log. Every term takes unit embeddings
[n, d], works from a batch of one upward and has finite gradients when all embeddings are the same.
"""

from runtime_server.training.losses.hybrid import LOSSES, HybridConfig, HybridLoss

__all__ = ["LOSSES", "HybridConfig", "HybridLoss"]
