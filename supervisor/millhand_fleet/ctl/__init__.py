"""worker-ctl: what an operator types."""
