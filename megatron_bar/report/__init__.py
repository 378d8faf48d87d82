"""The report of a recipe: a value, how its numbers are worded, and its pages in Markdown and HTML."""
