"""Mechanisms every service uses: transport, database, settings, log. Never a business noun."""
