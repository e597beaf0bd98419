"""Numbers that others have published, measured again with this code on the very pictures they were published for."""
