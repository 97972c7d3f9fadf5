"""Beside the slots: what a token counts where sampler and trainer disagree about its probability.

The engine that samples and the one that trains run the same weights with unlike arithmetic, so
rollouts come from a policy that is a little off the one the trainer takes for the old one.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from dynamo_cli.methods.objective import MAX_LOG_RATIO
from dynamo_cli.methods.tokens import TokenBatch
from dynamo_cli.schema import Section


class OffPolicy(Section):
    """Truncated importance weights of tokens: w = min(exp(logp_old - logp_sampler), cap).

    logp_old is the trainer's word on the policy that sampled, logp_sampler the sampler's. The
    exponent is kept within [-20, 20]. A weight carries no gradient.
    Source: E. Ionides, Truncated importance sampling, J. Comput. Graph. Stat. 17 (2008); token by
    token as in arXiv:1802.01561 Eq. 1.
    """

    kind: Literal["truncated"]
    cap: float = Field(ge=1)

    def weight(self, logp_old: Tensor, logp_sampler: Tensor) -> Tensor:
        """The weight of each token; same shape."""
        gap = (logp_old - logp_sampler).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return gap.exp().clamp(max=self.cap)


def weighted(planned: TokenBatch, weight: Tensor) -> TokenBatch:
    """A plan whose policy-gradient loss is multiplied by `weight` > 0 [B, T], token by token.

    The weight goes into the advantage, after all that was planned from it: every clip here is a
    minimum or maximum of multiples of A, so weight * loss(A) = loss(weight * A). An entropy bonus
    and the penalty of kl_cov, which are no multiples of A, keep the weight 1.
    """
    return replace(planned, advantage=planned.advantage * weight.to(planned.advantage))
