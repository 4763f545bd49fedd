"""The world around the engines: cameras, Redis, disk, people."""
