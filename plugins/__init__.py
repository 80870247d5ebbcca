"""ATTACH: one integration a file."""
