"""The HEAD DYNAMICS tab of TensorBoard."""
