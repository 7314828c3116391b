"""A Keras network as bytes and facts: what goes in and comes out, how it is loaded, checked and run."""
