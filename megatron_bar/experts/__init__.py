"""The three moves of BAR on folders: branch, merge, and what surrounds them."""
