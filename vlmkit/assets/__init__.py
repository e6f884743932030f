"""Data that ships with vlmkit."""
