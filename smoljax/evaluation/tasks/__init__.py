"""The tasks of `smoljax eval`: each asks a model about records and scores what it says."""
