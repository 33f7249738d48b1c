"""A live page beside a model in memory: move between specialists, read what the merge answers, keep the point."""
