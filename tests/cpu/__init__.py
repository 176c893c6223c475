"""The backend cpu: its stages against the reference, its threads, and the C++ under sanitizers."""
