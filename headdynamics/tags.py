"""The names under which TensorBoard holds a run's rows. Nothing is imported here: TensorBoard asks at its start."""

PLUGIN = "headdynamics"  # the plugin name that all of our tensors bear
RUN = f"{PLUGIN}/run"
NOTES = f"{PLUGIN}/notes"


def tag_of(field: str) -> str:
    """The tag of a field of the schema."""
    return f"{PLUGIN}/{field}"
