"""What is written down on a node: the ledger, locks and their queues, files under /run."""
