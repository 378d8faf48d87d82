"""The published nineteen (arXiv 2604.18473), a file each: what is asked, how an answer scores."""
