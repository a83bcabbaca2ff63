"""Metrics of samples against a reference, likelihoods, and diagnosis of checkpoints."""
