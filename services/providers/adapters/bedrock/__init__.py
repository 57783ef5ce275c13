"""AWS Bedrock: Converse for every model that has it, InvokeModel for Titan. Imported only when configured."""

from services.providers.adapters.bedrock.adapter import BedrockAdapter

__all__ = ["BedrockAdapter"]
