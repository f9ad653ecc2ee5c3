"""Training and measuring on the scenes data set: the bundled model, its student, and the easy-vqa recipe."""
