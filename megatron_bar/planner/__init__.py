"""How a recipe's stages fit on GPUs, and which layout each should take."""
