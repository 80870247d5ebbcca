"""A run file's content, to compare to the last bit."""

import h5py

CLOCK = ("seconds", "created")


def content(path, *without):
    """Every dataset and attribute as bytes, but the clock's, and `without`."""
    found = {}
    with h5py.File(path) as file:
        found |= {f"@{name}": str(value) for name, value in file.attrs.items() if name not in CLOCK}

        def keep(name, thing):
            if isinstance(thing, h5py.Dataset) and name.rpartition("/")[2] not in (*CLOCK, *without):
                text = h5py.check_string_dtype(thing.dtype) is not None
                found[name] = thing.asstr()[()].tolist() if text else (thing.shape, thing[()].tobytes())

        file.visititems(keep)
    return found
