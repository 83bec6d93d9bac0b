"""What every package stands on: errors, the disk, hashes, progress, devices, settings, processes."""
