"""OmniHub's services. The folder listing is the architecture; see ARCHITECTURE.md."""
