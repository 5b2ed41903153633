"""What the routes share: the model that is served, its limits, and who may ask."""

import time
from dataclasses import dataclass, field

from gptjax.config import ModelConfig
from gptjax.serving.attention import AttentionMaps
from gptjax.serving.metrics import ServingMetrics
from gptjax.serving.protocol import Limits
from gptjax.serving.refusals import Refusal
from gptjax.serving.scheduler import Scheduler
from gptjax.tokenizers.plain import Tokenizer


@dataclass(frozen=True)
class Service:
    """A model that is served, and everything that its routes need."""

    name: str
    """The name of the model in the API."""
    model: ModelConfig
    tokenizer: Tokenizer
    scheduler: Scheduler
    metrics: ServingMetrics
    limits: Limits
    context: int
    """Most tokens of a prompt."""
    key: str | None = None
    """The API key, if there is one."""
    attention: AttentionMaps | None = None
    """Where its heads look, if the server shows it."""
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model_name(self, name: str | None) -> None:
        """Raise `Refusal` for a request that wants another model."""
        if name not in (None, self.name):
            message = f"the model {str(name)[:100]!r} does not exist: this server has {self.name!r}"
            raise Refusal(404, message, "model", "model_not_found")
