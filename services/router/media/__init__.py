"""Media through the router: which provider, at what price, and is it well. It holds no state of jobs."""
