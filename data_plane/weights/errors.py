"""What can be wrong with weights. Each error is one full sentence with its values.

```
WeightsError(ValueError)
├── ArtifactError     an artifact folder, or a safetensors file, that cannot be trusted
├── GgufError         a GGUF file that cannot be trusted
├── ModelError        a readable model that Ebb cannot represent
└── SourceError       a source that cannot be had; `fatal` says whether trying again may help
```
"""


class WeightsError(ValueError):
    """Anything that makes weights unusable."""

    fatal: bool = True


class ArtifactError(WeightsError):
    """An artifact folder, or a safetensors file, whose contents contradict themselves."""


class GgufError(WeightsError):
    """A GGUF file whose contents contradict themselves, or which uses what Ebb does not read."""


class ModelError(WeightsError):
    """A model that was read but that Ebb cannot represent."""


class SourceError(WeightsError):
    """A source that does not exist (`fatal`), or that could not be reached just now."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal
