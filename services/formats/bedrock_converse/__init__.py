"""AWS Bedrock Converse: requests out, answers and streams in. The only module of this format others import.

No caller speaks it, so there is nothing to read from a caller and nothing to write to one.
"""

from services.formats.bedrock_converse.request import write_request
from services.formats.bedrock_converse.response import read_response
from services.formats.bedrock_converse.stream_reader import EXCEPTION, StreamReader, read_exception

__all__ = ["EXCEPTION", "StreamReader", "read_exception", "read_response", "write_request"]
