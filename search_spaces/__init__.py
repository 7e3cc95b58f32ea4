"""Ready search spaces, read as package data of `autoq.search_spaces`."""
