"""The name of the mesh axis over which members and batches are spread."""

DEVICES = "devices"
