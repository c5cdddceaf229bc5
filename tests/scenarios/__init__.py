"""Servers that run into trouble, and servers that do not, as an exporter beside them would show it."""
