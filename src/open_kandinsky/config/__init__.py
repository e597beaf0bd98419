"""How the commands meet their configuration files."""
