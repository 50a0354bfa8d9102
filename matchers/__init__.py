"""How to find things in a graph: patterns captured from torch functions, and where they occur."""
