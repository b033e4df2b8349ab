"""The verifier's and the drafter's own state machines in virtual time, on recorded traces."""
