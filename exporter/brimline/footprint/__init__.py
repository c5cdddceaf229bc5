"""Predicted memory of a model under its launch settings. Here so far: the bytes of its K/V cache."""
