"""One stage on one cluster: what trains, on which data, towards which objective."""
