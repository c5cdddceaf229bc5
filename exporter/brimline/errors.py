"""The exceptions that Brimline raises on purpose.

BrimlineError
├── ConfigError       the configuration file or a flag is wrong (exit 2)
├── SourceError       a server could not be asked, or its answer not taken
│   └── EngineError   the answer came, but is not what an engine says
├── DataSourceError   Prometheus, or a file of saved series, could not be read (exit 5)
├── GpuError          the GPU library or a GPU could not be read
└── FootprintError    a model's memory cannot be computed from what is known
    └── SettingError  a setting's text is no value of it, whatever the model
"""

from __future__ import annotations


class BrimlineError(Exception):
    """Something a user can act on; its text says what, where and what to do."""


class ConfigError(BrimlineError):
    """The configuration cannot be used. The text starts with FILE:LINE where there is one."""


class SourceError(BrimlineError):
    """A server could not be read.

    reason: a word of the bounded set `brimline.readings.TARGET_REASONS`, fit for a label.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class EngineError(SourceError):
    """A page was read, but it is not a usable page of an inference engine."""


class DataSourceError(BrimlineError):
    """Series could not be had from Prometheus, or from a file that holds them (exit 5).

    reason: `query` where the question is wrong, `limit` where it asks for more at once than the server or we
    take, `partial` where the answer lacks something; else a reason of SourceError.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class GpuError(BrimlineError):
    """The GPU library or one GPU could not be read.

    reason: a word of the bounded set `brimline.readings.GPU_REASONS`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FootprintError(BrimlineError):
    """The memory of a model cannot be computed from what is known."""


class SettingError(FootprintError):
    """A launch setting has a value that it can never have: misspelt, or of another kind."""
