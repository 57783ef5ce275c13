"""The router chooses models, asks them, rescues what fails, and takes the credits.

It owns the journal: one record for each request, durable before the caller has the last byte. It
never speaks a vendor's wire format (providers does) and never moves money itself (billing does).
"""
