"""What nobody may read who is not told it: keys, tokens, passwords."""

import os
from urllib.parse import unquote, urlsplit

from app.settings import Settings

HUB_TOKEN = "hf_e2e0123456789abcdef"  # of no use anywhere: workers have it to keep it secret


def secrets_of(settings: Settings) -> set[str]:
    """Those of an installation."""
    urls = [settings.database_url, settings.redis_url, settings.mlflow_tracking_uri]
    passwords = [urlsplit(url.get_secret_value()).password for url in urls if url is not None]
    found = {unquote(password) for password in passwords if password} | {password for password in passwords if password}
    for secret in (settings.api_key, settings.s3_secret_access_key, settings.wandb_api_key):
        if secret is not None:
            found.add(secret.get_secret_value())
    return found | {HUB_TOKEN, os.environ.get("HF_TOKEN", HUB_TOKEN)}
