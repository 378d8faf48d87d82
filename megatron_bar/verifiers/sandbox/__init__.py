"""Where code is run that a model wrote, or a grader that may never end."""
