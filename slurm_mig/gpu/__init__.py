"""The NVIDIA side of a node: the driver, its capability files, who holds an instance."""
