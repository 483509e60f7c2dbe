"""Measures parts by themselves, each in its own process: the engine without HTTP, the gateway without an engine."""
