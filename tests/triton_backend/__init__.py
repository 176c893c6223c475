"""The backend triton: interpreted, compiled for every target, and on the PTX executor."""
