"""What the routes share: the models that are served, their limits, and who may ask."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptjax.config import ModelConfig
from gptjax.serving.attention import AttentionMaps
from gptjax.serving.metrics import ModelMetrics, ServingMetrics
from gptjax.serving.protocol import Limits
from gptjax.serving.refusals import Refusal
from gptjax.serving.responses import model_entry
from gptjax.serving.scheduler import Scheduler
from gptjax.tokenizers.plain import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """A model that is served under a name, and everything that its routes need."""

    name: str
    """The name of the model in the API."""
    model: ModelConfig
    tokenizer: Tokenizer
    scheduler: Scheduler
    metrics: ModelMetrics
    limits: Limits
    context: int
    """Most tokens of a prompt."""
    template: str | None = None
    """The words around the turns of a chat, for a model that is tuned on them."""
    base: str | None = None
    """Name of the model that this one is an adapter of."""
    attention: AttentionMaps | None = None
    """Where its heads look, if the server shows it."""
    created: int = field(default_factory=lambda: int(time.time()))

    def entry(self) -> dict[str, Any]:
        """The model in the list of models."""
        facts = {
            "n_layer": self.model.n_layer,
            "n_head": self.model.n_head,
            "context": self.context,
            "attention_maps": self.attention is not None,
            "chat": self.template is not None,
            "base": self.base,
        }
        return model_entry(self.name, self.created, facts)


@dataclass(frozen=True)
class Service:
    """The models of a server; the first one answers requests that name none."""

    models: Sequence[ServedModel]
    metrics: ServingMetrics
    key: str | None = None
    """The API key, if there is one."""

    @property
    def default(self) -> ServedModel:
        """The model for requests that name none."""
        return self.models[0]

    def find(self, name: Any) -> ServedModel:
        """The model with this name; the default for a value that is no text.

        Raises `Refusal` for a name that no model has.
        """
        if not isinstance(name, str):  # absent, or the check of the body refuses it
            return self.default
        for model in self.models:
            if model.name == name:
                return model
        names = ", ".join(repr(model.name) for model in self.models)
        message = f"the model {name[:100]!r} does not exist: this server has {names}"
        raise Refusal(404, message, "model", "model_not_found")

    @property
    def is_healthy(self) -> bool:
        """Whether all models take new requests."""
        return all(model.scheduler.is_healthy for model in self.models)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return all(model.scheduler.is_idle for model in self.models)

    def start(self) -> None:
        """Begin to work."""
        for model in self.models:
            model.scheduler.start()

    def drain(self) -> None:
        """Refuse new requests from now on, and finish the others."""
        for model in self.models:
            model.scheduler.drain()

    def stop(self) -> None:
        """End everything that still runs or waits, and the threads."""
        self.drain()
        for model in self.models:
            model.scheduler.stop()
