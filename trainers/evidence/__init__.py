"""Tables and figures about the embedded checkpoints, and how these are rebuilt."""
