"""The GPU worker's rooms: compiled engines, device memory, and the streams between them."""
