"""One interface, two transports: a service is called the same way in process and over gRPC."""

from services.common.rpc.call import ANONYMOUS, Call, Identity
from services.common.rpc.connect import Connector
from services.common.rpc.errors import RpcError
from services.common.rpc.local import Registry

__all__ = ["ANONYMOUS", "Call", "Connector", "Identity", "Registry", "RpcError"]
