"""Sampling, editing and interpolation, and the shards and pictures that they write."""
