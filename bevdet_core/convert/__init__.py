"""Weights of the official releases in and out of this library."""
