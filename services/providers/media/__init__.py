"""Providers of images, video, speech and so on: one file per adapter, behind one MediaProviderService."""
