"""What every package uses: errors, the disk, hashes, progress, devices, settings, processes."""
