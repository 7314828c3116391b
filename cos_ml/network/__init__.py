"""A Keras network as bytes and facts: its inputs and outputs, how it is loaded, checked and run (every side)."""
