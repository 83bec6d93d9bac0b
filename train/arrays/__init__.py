"""The arrays of a training: how batches reach the device, what a step writes into, and how weights are updated."""
