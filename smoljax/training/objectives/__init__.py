"""The objectives, each a pure function of arrays, and the table that the training step reads."""
