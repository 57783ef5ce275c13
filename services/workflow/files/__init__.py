"""Files of generations: kept, hashed, typed by content, handed out by signed links."""
