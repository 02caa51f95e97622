"""Files, signals, processors, devices: nothing about sound."""
