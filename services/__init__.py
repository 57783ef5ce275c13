"""OmniHub's services. The folder listing is the architecture; see ARCHITECTURE.md."""

import os

# Envoy is started by fork and exec, and gRPC would complain at each fork that it cannot take part in
# it. It reads this while it is imported, so it is said before anything is.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # noqa: TID251
