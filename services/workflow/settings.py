"""Settings of the workflow service: none yet."""

from services.common.settings import Section


class WorkflowSettings(Section):
    """Settings of the workflow service."""
