"""The CPU decoder: one native call a step, in C++ behind ctypes. Needs numpy, and no torch."""
