"""Text from a policy."""
