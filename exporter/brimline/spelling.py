"""Names that people type, beside those that exist: which one was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import takewhile

# `ulr` and `url` share 0.67 of their letters, `role` and `rate` 0.5.
_LEAST_LIKENESS = 0.65


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant; None where none is near.

    It is the only one with all of the words (`from_pid` for `pid`), or nearly spelt so, in whatever case and
    with - or _. What all names begin with makes none of them near.
    """
    by_form = {_form(one): one for one in known}
    letters = zip(_form(name), *by_form, strict=False)
    shared = len(list(takewhile(lambda here: len(set(here)) == 1, letters))) if len(by_form) > 1 else 0
    by_rest = {form[shared:]: one for form, one in by_form.items()}
    rest = _form(name)[shared:]
    words = set(rest.split("_"))
    holding = [one for form, one in by_rest.items() if words <= set(form.split("_"))]
    if rest and holding:
        return holding[0] if len(holding) == 1 else None
    near = difflib.get_close_matches(rest, by_rest, n=1, cutoff=_LEAST_LIKENESS)
    return by_rest[near[0]] if near else None


def known_names(name: str, known: Iterable[str]) -> str:
    """`did you mean 'model'? known: model, name`: the end of a sentence on a name that does not exist."""
    listed = list(known)
    near = nearest(name, listed)
    meant = "" if near is None else f"did you mean {near!r}? "
    return f"{meant}known: {', '.join(listed)}"


def _form(name: str) -> str:
    return name.casefold().replace("-", "_")
