"""Training: configs, objectives, optimizer, sharding, the step and the run. Pure functions below, one loop on top."""
