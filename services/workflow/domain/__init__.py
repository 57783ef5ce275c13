"""The rules of jobs: pure, without clock, database or network."""
