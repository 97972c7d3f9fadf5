"""Probes of a policy: what its gradients and entropies do, beside what the theory says of them."""
