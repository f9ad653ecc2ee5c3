"""Speed side by side: figures of ours, of the peers found installed, and of the machine itself."""
