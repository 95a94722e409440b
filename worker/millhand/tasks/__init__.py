"""What the model is asked: a prompt and the shape of the answer, for each task."""
