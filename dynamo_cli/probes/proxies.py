"""Which function of the success rate follows the variance of a problem's gradient.

N problems, R resamples. p: success rate; n: rollouts of a problem in a step.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dynamo_cli.methods.allocation import bernoulli_variance, mixed_group_chance
from dynamo_cli.probes.estimates import (
    Estimate,
    ends,
    estimate,
    explained,
    explained_in_proportion,
    rank_correlation,
)

PROXIES = ("P", "sqrt(P)", "mixed", "sqrt(mixed)")
NORMS = "P x norm"  # the variance where rewards and gradients are independent of each other
STATISTICS = {
    "rank": rank_correlation,
    "r2": explained,
    "r2_origin": explained_in_proportion,
}


def proxies(correct: np.ndarray, total: np.ndarray, *, size: float) -> dict[str, np.ndarray]:
    """[N] each, from k correct of G: P = p (1 - p) without bias, mixed = 1 - p^n - (1-p)^n, and
    their roots. All rise and fall together, with the distance of p from 1/2."""
    variance = bernoulli_variance(correct, total, prior="none")
    # Rounding must not rank p and 1 - p apart.
    mixed = mixed_group_chance(correct, total, size=size, prior="none").round(12)
    found = variance, np.sqrt(variance), mixed, np.sqrt(mixed)
    return dict(zip(PROXIES, found, strict=True))


def fits(
    candidates: Mapping[str, np.ndarray], sigma: np.ndarray, weights: np.ndarray
) -> pd.DataFrame:
    """One row per target (`variance`: sigma^2, `std`: sigma), statistic and proxy.

    statistic: Spearman's `rank` correlation; `r2` of the best line; `r2_origin` of the best line
    through 0, for counts in proportion need that. Columns value, low, high (bootstrap over
    problems); behind, behind_low, behind_high: how far it lies behind the best, paired; best.
    sigma: [N] sigma^2; weights: [R, N] how often each problem counts in each resample.
    """
    rows = []
    for target, y in (("variance", sigma), ("std", np.sqrt(sigma.clip(min=0)))):
        for name, statistic in STATISTICS.items():
            found = {k: estimate(statistic, x, y, weights) for k, x in candidates.items()}
            best = max(found, key=lambda proxy: np.nan_to_num(found[proxy].value, nan=-np.inf))
            lead = statistic(candidates[best], y, weights)
            for proxy, x in candidates.items():
                value = found[best].value - found[proxy].value
                gap = Estimate(value, *ends(lead - statistic(x, y, weights)))
                rows.append((target, name, proxy, *found[proxy], *gap, proxy == best))
    columns = ["target", "statistic", "proxy", *Estimate._fields]
    columns += ["behind", "behind_low", "behind_high", "best"]
    return pd.DataFrame(rows, columns=columns)
