"""Settings of the agents service: none yet."""

from services.common.settings import Section


class AgentsSettings(Section):
    """Settings of the agents service."""
