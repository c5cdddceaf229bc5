"""Two variants of a server compared: guards, estimators, verdict. The only place of numpy and scipy."""
