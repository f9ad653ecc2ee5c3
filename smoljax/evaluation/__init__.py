"""How good a model is: metrics, their intervals, and the tasks that ask a model and score its answers."""
