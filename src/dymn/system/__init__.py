"""Files, signals, CPUs, devices: nothing specific to audio."""
