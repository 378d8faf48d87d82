"""Where the router sends tokens: token by token, domain by domain, and how many experts a layer needs."""
