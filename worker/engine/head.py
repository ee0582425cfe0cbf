"""What the families do to their head's logits, read from the config; the probe at load proves it right."""

from transformers import PreTrainedConfig

from worker.engine.losses import LogitShape


def logit_shape(config: PreTrainedConfig) -> LogitShape:
    """Gemma caps its logits, Granite divides them, Cohere multiplies them."""
    config = config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return LogitShape(scale=scale, softcap=getattr(config, "final_logit_softcapping", None))
