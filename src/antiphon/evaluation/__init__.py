"""Running methods over many items, resumably."""
