"""Who may do what: Redis users of the roles, their certificates, and tokens at the doors."""
