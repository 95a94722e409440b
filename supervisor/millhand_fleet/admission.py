"""Whether a configuration can be worked with, as far as that shows before a process is started."""

from millhand.address import model_authorization, redis_address
from millhand.config import Config
from millhand.tasks.catalogue import chosen_tasks


def require_usable(config: Config) -> None:
    """Look for the tasks, and into the files of secrets and certificates. Raises Unusable with what to change."""
    chosen_tasks(config)
    redis_address(config.redis)
    model_authorization(config.model)
