"""Measures the engine by itself, in a process of its own: no HTTP, no text, no torch where the native path serves."""
