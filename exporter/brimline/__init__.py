"""Brimline: how near an LLM inference server's memory stands to the brim."""

__version__ = "0.1.0"
