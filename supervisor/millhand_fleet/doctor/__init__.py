"""What `worker-ctl doctor` finds: probes gather facts, pure judgements make findings of them."""
