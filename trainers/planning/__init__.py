"""The dry run: what a run would cost, without a device."""
