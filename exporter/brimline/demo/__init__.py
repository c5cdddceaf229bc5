"""Simulated servers for a machine without GPU: real scheduling rules, made-up traffic, no model anywhere."""
