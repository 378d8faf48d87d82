"""Makes a recipe: its graph of steps, what each step does, and the report of what they left."""
