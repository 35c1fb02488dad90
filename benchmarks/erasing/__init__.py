"""Erasing: random networks, the law over known ones, the zoos, and what the analysis costs."""
