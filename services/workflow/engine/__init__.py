"""What moves jobs on: messages to handlers, providers asked, results kept, credits settled."""
