"""Enrolment over the network: the gateway's client, and the CA's server that a person starts for it. Only while enrolling, never else."""
