"""Settings of the server: what there is to set, and where it is gathered from."""

from service.settings.gathered import load_settings
from service.settings.known import ENV_PREFIX, Settings

__all__ = ["ENV_PREFIX", "Settings", "load_settings"]
